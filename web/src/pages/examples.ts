/** Texts to begin with. The bundled models have read old novels; bigger ones take the modern texts as well. */

export interface Example {
  name: { en: string; zh: string };
  text: string;
}

export const FILL_EXAMPLES: readonly Example[] = [
  { name: { en: "Old novel", zh: "小说" }, text: "次日清晨，__，众人都到堂前__。" },
  { name: { en: "A sigh", zh: "感叹" }, text: "却说宋江见了，心中__，便道：“__？”" },
  {
    name: { en: "Journey", zh: "行路" },
    text: "行了半日，只见前面一座__，十分__。师徒三人走到山门前，只听得里面有人叫道：“__！”",
  },
  { name: { en: "Idiom", zh: "成语" }, text: "他做事一向__，从不半途而废，真可谓“有志者__”。" },
  {
    name: { en: "News", zh: "新闻" },
    text: "本报讯：昨日，__在北京举行。来自全国各地的__参加了会议，与会者一致认为，__。",
  },
  { name: { en: "Night", zh: "月夜" }, text: "是夜月明如昼，__独自在园中__，忽见__从墙外跳将进来。" },
];

/** EVA talks as people do in novels. */
export const EVA_EXAMPLES: readonly string[] = [
  "你这汉子是谁？",
  "你要往哪里去？",
  "今日天气甚好，我们出去走走如何？",
  "小姐为何啼哭？",
];

export const CHAT_EXAMPLES: Record<"en" | "zh", readonly string[]> = {
  en: [
    "What is 17 * 23?",
    "Explain in three sentences why the sky is blue.",
    "Write a haiku about a swallow.",
    "What should I look at first in an old house?",
  ],
  zh: ["17 乘 23 等于多少？", "用三句话说明天空为什么是蓝的。", "写一首关于燕子的五言绝句。", "看老房子，先看哪里？"],
};

export const STORY_EXAMPLES: readonly Example[] = [
  { name: { en: "Wine", zh: "饮酒" }, text: "众人正在饮酒，忽听得" },
  { name: { en: "Snow", zh: "大雪" }, text: "话说那日天降大雪，" },
  { name: { en: "A door", zh: "推门" }, text: "却说那老汉推开门，只见" },
  { name: { en: "A temple", zh: "古寺" }, text: "那书生进京赶考，天色已晚，远远望见一座古寺，便上前叩门。" },
];

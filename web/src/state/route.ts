import { ref } from "vue";

export const PAGES = ["fill", "chat", "story", "machine"] as const;
export type Page = (typeof PAGES)[number];

/** The page that an address names after its "#"; the first one where it names none. */
export function pageOf(hash: string): Page {
  return PAGES.find((page) => hash === `#/${page}`) ?? PAGES[0];
}

export const page = ref<Page>(pageOf(location.hash));
window.addEventListener("hashchange", () => (page.value = pageOf(location.hash)));

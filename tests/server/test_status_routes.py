"""What the server says of itself and its models."""

WRITE = {"model": "cpm1-mini", "prompt": "清晨", "seed": 1, "max_tokens": 400}


def test_slots_are_counted_in_texts_and_requests_beside_them(server):
    # Two slots: two of the three texts of the one request run, the third waits.
    server.faults(step_seconds=0.05)
    with server.opened("/v1/completions", {**WRITE, "n": 3}):
        model = server.wait_for(lambda m: m["num_running"] == 2, "cpm1-mini")
        model = server.wait_for(lambda m: m["num_waiting"] == 1, "cpm1-mini")
        assert (model["num_slots"], model["num_running"], model["num_jobs"]) == (2, 2, 1)
        figures = server.get("/metrics").body.decode().splitlines()
        for name, value in (
            ("texts_running", 2),
            ("texts_waiting", 1),
            ("requests_running", 1),
            ("requests_waiting", 0),
        ):
            assert f'martlet_{name}{{model="cpm1-mini"}} {value:.1f}' in figures
    server.faults()
    server.wait_until_idle("cpm1-mini")

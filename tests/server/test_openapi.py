"""The described interface is the one that answers."""

import json
import re

import pytest

from martlet.server.app import all_endpoints, create_app
from martlet.server.backend import Backend
from martlet.server.openapi import describe_api
from martlet.server.pages import page_endpoints

from .asgi import ask, idle_app, settings_with

DOCUMENT = describe_api(all_endpoints())


def test_every_route_of_the_table_is_described_with_its_body_and_its_errors():
    for endpoint in all_endpoints():
        path = endpoint.path.replace(":path", "")
        if not endpoint.in_openapi:
            assert path not in DOCUMENT["paths"]
            continue
        operation = DOCUMENT["paths"][path][endpoint.method.lower()]
        assert operation["summary"]
        assert "default" in operation["responses"]
        assert ("requestBody" in operation) == (endpoint.body is not None)


def test_every_reference_leads_somewhere_and_every_operation_has_a_name_of_its_own():
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert references <= set(DOCUMENT["components"]["schemas"])
    operations = [o for methods in DOCUMENT["paths"].values() for o in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)


def test_refused_fields_are_described_with_the_values_that_are_taken():
    fields = DOCUMENT["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["logit_bias"]["enum"] == [None, {}]
    assert fields["metadata"]["description"] == "Taken, and without effect here"


def test_the_document_is_served():
    assert ask(idle_app(), path="/openapi.json").json() == DOCUMENT


def test_a_server_without_a_web_app_says_how_to_build_it_and_lists_what_there_is(tmp_path):
    pages = page_endpoints(all_endpoints(), tmp_path)
    assert [page.path for page in pages] == ["/"]
    settings = settings_with()
    app = create_app(Backend(settings), settings, tmp_path)
    page = ask(app, path="/", headers={"accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert b"make web" in page.body
    assert b"/v1/chat/completions" in page.body
    assert b"<script" not in page.body
    assert b"style" not in page.body


def test_files_of_the_web_app_are_kept_by_browsers_where_their_names_have_a_hash(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "index-abc.js").write_text("1")
    (tmp_path / "index.html").write_text("<!doctype html><p>app")
    (tmp_path / "icon.svg").write_text("<svg/>")
    settings = settings_with()
    app = create_app(Backend(settings), settings, tmp_path)
    script = ask(app, path="/assets/index-abc.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "immutable" in script.headers["cache-control"]
    assert ask(app, path="/icon.svg").headers["cache-control"] == "no-cache"
    page = ask(app, path="/", headers={"accept": "text/html"})
    assert page.body == b"<!doctype html><p>app"
    assert page.headers["cache-control"] == "no-cache"
    # Parts are not served, so nobody can ask for a thousand of them.
    ranged = ask(app, path="/icon.svg", headers={"range": "bytes=0-1,0-1,0-1"})
    assert (ranged.status, ranged.body) == (200, b"<svg/>")
    for path in ("/assets/../secret", "/assets/", "/assets/other.js", "/index.html/x"):
        assert ask(app, path=path).status == 404


@pytest.mark.slow
def test_schemathesis_finds_no_answer_that_breaks_the_description(server):
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.update(base_url=server.address)
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    num_operations = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        num_operations += 1

        @settings(max_examples=4, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def probe(case):
            response = case.call(base_url=server.address, timeout=120)
            case.validate_response(response, checks=checks)

        probe()
    assert num_operations >= 25
    assert server.model("cpm1-mini")["num_restarts"] == 0

"""The Data Docs page of a validation: GX's own rendering of each expectation, in one file that fetches nothing.

GX's page loads Bootstrap, jQuery, Vega, fonts and its logo from six hosts, which pods and sandboxed frames cannot
reach. Its sections are kept; what surrounds them is ours, and a content security policy forbids the rest.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from components.core.contracts import ValidationReport

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Validation: {{ report.word }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #1c2128; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
  h5 { font-size: 1rem; margin: 1.5rem 0 .3rem; } h6 { font-size: .9rem; margin: .5rem 0; }
  table { border-collapse: collapse; width: 100%; margin-bottom: .5rem; }
  th, td { text-align: left; padding: .3rem .7rem .3rem 0; vertical-align: top; border-bottom: 1px solid #d0d7de; }
  td { overflow-wrap: anywhere; } .sentences td:first-child { white-space: nowrap; }
  .ge-section table { table-layout: fixed; }
  .ge-section th:first-child { width: 4rem; } .ge-section th:nth-child(2) { width: 60%; }
  .badge { background: #eaeef2; border-radius: .6rem; padding: 0 .4rem; font-size: .85rem; white-space: nowrap; }
  .yes, .text-success { color: #1a7f37; } .no, .text-danger { color: #cf222e; }
  .maybe, .text-warning { color: #9a6700; }
  .fas { font-style: normal; } .fa-check-circle::before { content: "\\2713"; } .fa-times::before { content: "\\2717"; }
  .fa-exclamation-triangle::before { content: "!"; } [hidden] { display: none; }
</style>
<h1>Validation: <span class="{{ 'no' if report.failures else 'yes' }}">{{ report.word }}</span></h1>
<table class="sentences">
{% for e in report.expectations -%}
<tr><td class="{{ 'yes' if e.passed else 'no' if e.severity == 'reject' else 'maybe' }}">
{{- "✓" if e.passed else e.severity }}</td><td>{{ e.sentence | e }}</td></tr>
{% endfor %}</table>
<h2>As Great Expectations sees it</h2>
{% for section in sections %}{% set section_loop = loop %}{% include "section.j2" %}{% endfor %}
</html>
"""


def render_page(outcome: Any, report: ValidationReport) -> str:
    """Render one validation.

    Args:
        outcome: GX's `ExpectationSuiteValidationResult`.
        report: The same in our sentences: GX knows neither what follows when an expectation fails, nor a row's source.
    """
    from great_expectations.core import expectationSuiteValidationResultSchema
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView
    from jinja2 import ChoiceLoader, DictLoader

    plain = json.loads(json.dumps(outcome.to_json_dict()))  # the renderer refuses NumPy's numbers
    for result in plain["results"]:
        result["result"] = _escaped(result["result"])
    loaded = expectationSuiteValidationResultSchema.load(plain)
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(loaded)
    document.sections = document.sections[1:-1]  # without links to GX's other pages, and without versions and run ids
    view: Any = DefaultJinjaPageView()
    view.env.loader = ChoiceLoader([DictLoader({"page.j2": PAGE}), view.env.loader])
    return str(view.render(document, report=report))


def _escaped(value: Any) -> Any:
    """Values that were found, such as a folder's name, cannot become markup: GX 1.24 escapes what was asked only."""
    match value:
        case str():
            return escape(value)
        case list():
            return [_escaped(item) for item in value]
        case dict():
            return {key: _escaped(item) for key, item in value.items()}
    return value

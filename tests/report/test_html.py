from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from unetcli.report.html import Html, embedded, join, tag


@given(st.text())
def test_text_never_becomes_an_element(text: str) -> None:
    assert "<" not in join(text)
    assert tag("p", text).count("<") == 2
    assert tag("p", title=text).count('"') == 2


def test_what_is_html_already_stays_as_it_is() -> None:
    assert tag("p", Html("<b>1</b>"), [None, "a&b"]) == "<p><b>1</b>a&amp;b</p>"


@given(st.dictionaries(st.text(), st.text()))
def test_data_in_a_script_stay_in_it_and_come_out_as_they_were(values: dict[str, str]) -> None:
    told = embedded(values | {"end": "</script><!--"})
    assert "<" not in told
    assert json.loads(told) == values | {"end": "</script><!--"}

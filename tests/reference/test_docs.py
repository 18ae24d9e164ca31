"""docs/numerics.md says what the oracle does."""

import re
from pathlib import Path

from megamoe_jit.reference.rounding_points import list_rounding_points, rounding_points

PAGE = (Path(__file__).parents[2] / "docs" / "numerics.md").read_text()


def test_the_page_has_a_row_for_each_rounding_point_of_each_recipe() -> None:
    table = PAGE.split("<!-- rounding points -->")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (?:`(\w+)`|none) \|", table, re.MULTILINE)
    expected = [
        (name, point, getattr(rounding_points(name), point) or "")
        for name in list_rounding_points()
        if name != "exact"
        for point in ("l1_acts", "weights", "l2_acts")
    ]
    assert rows == expected


def test_the_page_has_a_row_for_each_common_point() -> None:
    table = PAGE.split("## Rounding points")[1].split("<!-- rounding points -->")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == set(type(rounding_points("exact")).__dataclass_fields__) - {"name", "checkpoint"}

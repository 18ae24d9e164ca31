"""`inspect-sf`: both directions, padding, the picture, and arguments that do not go together."""

from __future__ import annotations

import json

import pytest

from megamoe_jit.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["inspect-sf", "--hidden", "512", "--intermediate", "256", *arguments])
    output = capsys.readouterr()
    return output.out + output.err + f"exit {end.value.code}"


def test_a_row_and_a_group_are_followed(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--row", "300", "--group", "21")
    for part in (
        "row 300 (up), group 21: K 336 to 351",
        "byte 9621 of [512, 32]",
        "row 92: tile 0",
        "lane 28",
        "column + 6",
    ):
        assert part in text
    assert "row  92 .#.." in text
    assert text.endswith("exit 0")


@pytest.mark.parametrize(
    "where",
    [
        ["--stage", "checkpoint", "--byte", "9621"],
        ["--byte", "10697"],
        ["--stage", "shared", "--k-stage", "1", "--byte", "969"],
        ["--stage", "tensor", "--k-stage", "1", "--lane", "60", "--column", "6", "--byte", "1"],
    ],
)
def test_every_stage_leads_back(capsys: pytest.CaptureFixture[str], where: list[str]) -> None:
    place = json.loads(run(capsys, *where, "--json").splitlines()[0])["place"]
    assert (place["row"], place["group"]) == (300, 21)


def test_l2_and_other_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--recipe", "mxfp8_mxfp4", "--layer", "l2", "--row", "37", "--group", "1")
    assert "MMA 1 of the stage, with scale factor id 1" in text
    assert "row 37, group 1: K 32 to 63" in text


def test_padding_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "padding" in run(
        capsys, "--hidden", "544", "--stage", "tensor", "--k-stage", "2", "--column", "4", "--byte", "3"
    )
    assert "beside --row or --group" in run(capsys, "--row", "1", "--byte", "1")
    assert "has no scale factors in tensor memory" in run(capsys, "--recipe", "fp8_nvfp4")

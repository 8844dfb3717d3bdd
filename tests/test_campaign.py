"""A small fixed draw of the fault campaign (`make campaign`), and that it would notice a fault."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import campaign, damage


@pytest.mark.slow
def test_a_small_draw_survives(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "1")  # the campaign sets them; this has them set back
    quick = "training, (kill|a damaged)|index build, kill|publish to a folder, kill|push, a broken"
    assert campaign.main(["--draws", "1", "--seed", "0", "--only", quick]) == 0
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[tried.strip(), survived.strip()] for _, tried, survived in rows] == [["1", "1"]] * 5


def test_what_does_not_survive_is_told_with_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign.Draw, "run", lambda *_: 0)
    part = campaign.Part("a part", lambda draw: [], lambda draw: "other bytes", seconds=1.0, expected="the bytes")
    part.draw(tmp_path, seed=7)
    assert part.failed == ["seed 7: other bytes is not the bytes"] and not part.survived


@pytest.mark.slow
def test_one_case_of_each_damage_survives(tmp_path: Path) -> None:
    for part in damage.build_damages():
        part.cases = 1
        part.prepare(tmp_path)
        part.draw(tmp_path, seed=0)
        assert (part.failed, part.survived) == ([], 1), part.name


def nothing_named(case: damage.Case) -> None:
    case.run("search", "--model", case.own, "--query", "music", "--chunks", case.own / "none.txt")
    case.names = ["another file"]


def wrong_answer(case: damage.Case) -> None:
    case.run("recipes")
    case.check = lambda out: "another answer" if "tinybert train" in out else None


@pytest.mark.parametrize(
    ("what", "wrong"), [(nothing_named, "the message names none of"), (wrong_answer, "another answer")]
)
def test_a_damage_that_does_not_survive_is_told(
    what: Callable[[damage.Case], None], wrong: str, tmp_path: Path
) -> None:
    part = damage.Damage("a part", what, cases=1)
    (tmp_path / "sound").mkdir()
    part.draw(tmp_path, seed=7)
    assert not part.survived and len(part.failed) == 1
    assert part.failed[0].startswith("seed 7, case 0") and wrong in part.failed[0]


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (f"# {damage.OWNED}", "a heading"),
        (f"<b>{damage.OWNED}</b> x <i title={damage.OWNED}>", "html"),
        (f"```bash\nls; touch {damage.OWNED}\n```", "a command of its own"),
    ],
)
def test_a_hostile_card_is_noticed(body: str, wrong: str, tmp_path: Path) -> None:
    head = "---\nlibrary_name: transformers\ntags: [tinybert]\n---\n"
    (tmp_path / "README.md").write_text(f"{head}{body}\n")
    assert wrong in str(damage.card_problem(tmp_path))
    (tmp_path / "README.md").write_text(f"{head}`# {damage.OWNED}`\n")
    assert damage.card_problem(tmp_path) is None

"""What the classifier answers, end to end: in tables, in explanations, and judged by an evaluation of the same gate and no other."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pipeline.conftest import write
from tests.pipeline.test_passes import Counted, write_recipe
from typer.testing import CliRunner

import offmap
from offmap.cli import app
from offmap.core.errors import ConfigError, DataError
from offmap.pipeline.gate import Gate
from offmap.pipeline.inputs import paths
from offmap.represent.classifier import ClassifierEncoder, default_input
from offmap.represent.encoder import BuiltinEncoder
from offmap.represent.ensemble import EnsembleEncoder
from offmap.represent.probe import probed, width

NAMES = ("cat", "dog", "hen")
PARTS = {"knn": "layer = 'penultimate'", "energy": ""}


def few(discs: Path) -> list[Path]:
    return sorted(discs.iterdir())[:20]


def plain(discs: Path, folder: Path) -> Gate:
    """A gate on no classifier."""
    recipe = write_recipe(folder, {"knn": ""})
    return offmap.fit(few(discs), recipe=recipe, encoder=BuiltinEncoder.shipped(size=32), jobs=0, use_cache=False)


def named(module: Counted) -> ClassifierEncoder:
    return ClassifierEncoder(module, spec=default_input(module), class_names=NAMES)


@pytest.fixture(scope="module")
def module() -> Counted:
    return Counted(dropout=0.0)


@pytest.fixture(scope="module")
def own(discs: Path, module: Counted, tmp_path_factory: pytest.TempPathFactory) -> Gate:
    recipe = write_recipe(tmp_path_factory.mktemp("recipe"), PARTS)
    return offmap.fit(few(discs), recipe=recipe, encoder=named(module), jobs=0, use_cache=False, keep_neighbours=True)


@pytest.fixture(scope="module")
def evaluated(own: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved gate, and the evaluation of its scores of 160 images on which a wrong answer is one below a limit."""
    place = tmp_path_factory.mktemp("evaluated")
    own.save(place / "gate")
    new = write(place / "new", 160, first=500)
    table = own.score(new, jobs=0, use_cache=False)
    table.save(place / "scores.csv")
    rows = table.rows
    limit = float(np.quantile([r["max_probability"] for r in rows], 0.3))
    with (place / "preds.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "correct", "confidence"])
        writer.writerows([r["item"], int(r["max_probability"] > limit), r["max_probability"]] for r in rows)
    offmap.evaluate(place / "preds.csv", scores=place / "scores.csv", gate=place / "gate", risk=0.2, probability=0.8, repeats=100).save(
        place / "evaluation"
    )
    return place


def file_of(evaluated: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((evaluated / "evaluation" / "abstention.json").read_text(encoding="utf-8"))
    return content


def with_rule(folder: Path, evaluated: Path, **changed: object) -> Path:
    """The evaluation with its first rule about ``max_probability``, changed."""
    content = file_of(evaluated)
    rule = {**content["rules"][0], "confidence": "max_probability", "accepted": "above", "limit": 0.5, **changed}  # type: ignore[index]
    folder.mkdir(exist_ok=True)
    (folder / "abstention.json").write_text(json.dumps({**content, "rules": [rule]}), encoding="utf-8")
    return folder


def test_answers_are_the_softmax_of_the_same_pass(own: Gate, discs: Path, module: Counted) -> None:
    one = sorted(discs.iterdir())[0]
    module.seen = 0
    found = own.explain(one)
    assert module.seen == 1
    answer = found.row.answer
    assert answer is not None
    stream = replace(own.stream(0, use_cache=False), needs=frozenset({"logits"}))
    logits = next(iter(stream.over(paths(one, volumes=False).sources))).signals["logits"][0].double()
    np.testing.assert_allclose(answer.probabilities, logits.softmax(dim=0).numpy(), rtol=1e-6)
    assert answer.predicted == NAMES[int(logits.argmax())]
    row = own.score(one, jobs=0, use_cache=False).rows[0]
    assert row["predicted"] == answer.predicted
    assert row["max_probability"] == pytest.approx(answer.max_probability)
    assert row["entropy"] == pytest.approx(answer.entropy)


def test_names_come_back_with_the_gate_though_the_module_has_none(own: Gate, module: Counted, tmp_path: Path, discs: Path) -> None:
    own.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate", encoder=module)
    assert again.encoder.class_names == NAMES
    assert again.id == own.id
    assert list(again.recipe.parts) == list(own.recipe.parts)
    assert again.save(tmp_path / "again") == own.id
    assert again.explain(sorted(discs.iterdir())[0]).row.answer == own.explain(sorted(discs.iterdir())[0]).row.answer


def test_labels_of_a_gate_do_not_name_the_classes_of_a_classifier(discs: Path, tmp_path: Path, module: Counted) -> None:
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *([str(p), "abc"[i % 3]] for i, p in enumerate(sorted(discs.iterdir())))])
    gate = offmap.fit(few(discs), labels=tmp_path / "labels.csv", recipe=write_recipe(tmp_path, PARTS), encoder=module, jobs=0)
    answer = gate.explain(sorted(discs.iterdir())[0]).row.answer
    assert answer is not None
    assert str(answer.predicted).startswith("class ")


def test_a_gate_without_a_classifier_has_no_answer_and_its_table_is_as_before(discs: Path, tmp_path: Path) -> None:
    gate = plain(discs, tmp_path)
    one = sorted(discs.iterdir())[0]
    assert gate.explain(one).row.answer is None
    assert not {"predicted", "max_probability"} & set(gate.score(one, jobs=0).arrow.column_names)
    with pytest.raises(ConfigError, match=r"builtin, which is no classifier.*Fit a gate on the classifier itself"):
        gate.explain(one, abstain=tmp_path)


def test_one_logit_is_no_answer(discs: Path, tmp_path: Path) -> None:
    single = Counted(dropout=0.0)
    single.fc = torch.nn.Linear(16, 1)
    gate = offmap.fit(few(discs), recipe=write_recipe(tmp_path, {"knn": ""}), encoder=single, jobs=0)
    assert gate.explain(sorted(discs.iterdir())[0]).row.answer is None


def test_an_ensemble_answers_with_the_mean_of_its_members(discs: Path, tmp_path: Path) -> None:
    one, other = Counted(dropout=0.0), Counted(dropout=0.0)
    with torch.no_grad():
        other.fc.bias += torch.tensor([3.0, 0.0, -1.0])
    gate = offmap.fit(few(discs), recipe=write_recipe(tmp_path, {"knn": ""}), encoder=[one, other], jobs=0)
    assert isinstance(gate.encoder, EnsembleEncoder)
    first = sorted(discs.iterdir())[0]
    answer = gate.explain(first).row.answer
    assert answer is not None
    singles = [
        offmap.fit(few(discs), recipe=write_recipe(tmp_path, {"knn": ""}), encoder=each, jobs=0).explain(first).row.answer
        for each in (one, other)
    ]
    mean = np.mean([a.probabilities for a in singles if a is not None], axis=0)
    np.testing.assert_allclose(answer.probabilities, mean, rtol=1e-6)
    assert "predicted" not in gate.score(first, jobs=0).arrow.column_names, "the other members would have to run for it"


def test_a_probe_answers_by_name(discs: Path, tmp_path: Path) -> None:
    base = BuiltinEncoder.shipped(size=32)
    weight = torch.randn(2, width(base), generator=torch.Generator().manual_seed(0))
    encoder = probed(base, weight, torch.zeros(2), class_names=("left", "right"))
    gate = offmap.fit(few(discs), recipe=write_recipe(tmp_path, {"knn": ""}), encoder=encoder, jobs=0, use_cache=False)
    answer = gate.explain(sorted(discs.iterdir())[0]).row.answer
    assert answer is not None
    assert answer.predicted in ("left", "right")


def test_logits_that_are_not_finite_are_no_answer_and_never_believed(
    discs: Path, tmp_path: Path, module: Counted, own: Gate, evaluated: Path
) -> None:
    broken = Counted(dropout=0.0)
    gate = offmap.fit(few(discs), recipe=write_recipe(tmp_path, {"knn": "layer = 'one'"}), encoder=broken, jobs=0, use_cache=False)
    with torch.no_grad():
        broken.fc.bias[1] = float("inf")
    found = gate.explain(sorted(discs.iterdir())[0])
    assert found.row.status == "ok"
    assert found.row.answer is not None
    assert not found.row.answer.finite
    content = {**file_of(evaluated), "gate": {"id": gate.id}}
    for accepted in ("always", "above"):
        path = with_rule(tmp_path / accepted, evaluated, accepted=accepted)
        path.joinpath("abstention.json").write_text(
            json.dumps({**content, "rules": json.loads((path / "abstention.json").read_text())["rules"]})
        )
        judged = gate.explain(sorted(discs.iterdir())[0], abstain=path).row.answer
        assert judged is not None
        assert judged.believed is not None
        assert judged.believed.abstain
    assert gate.score(few(discs), jobs=0, use_cache=False).rows[0]["predicted"] is None


def test_an_evaluation_names_its_gate_columns_and_directions(own: Gate, evaluated: Path) -> None:
    content = file_of(evaluated)
    assert content["gate"] == {"id": own.id, "encoder": own.encoder.sha256, "parts": ["knn", "energy"]}
    rules = {r["confidence"]: r for r in content["rules"] if r["method"] == "learn_then_test"}  # type: ignore[attr-defined]
    assert set(rules) == {"confidence", "score", "score.knn", "score.energy"}
    assert rules["confidence"]["accepted"] == "above"
    assert all(rules[name]["accepted"] in ("below", "never", "always") for name in ("score", "score.knn"))


@pytest.mark.parametrize(
    ("limit", "accepted", "abstains"), [(0.0, "above", False), (1.0, "above", True), (None, "never", True), (None, "always", False)]
)
def test_the_rule_decides(own: Gate, evaluated: Path, tmp_path: Path, limit: float | None, accepted: str, abstains: bool) -> None:
    place = with_rule(tmp_path / "evaluation", evaluated, limit=limit, accepted=accepted)
    found = own.explain(evaluated / "new" / "000.png", abstain=place)
    assert found.row.answer is not None
    believed = found.row.answer.believed
    assert believed is not None
    assert believed.abstain is abstains
    assert believed.value == found.row.answer.max_probability
    found.save(tmp_path / "why")
    html = (tmp_path / "why" / "index.html").read_text(encoding="utf-8")
    assert f"Would abstain at your risk limit: <strong>{'yes' if abstains else 'no'}</strong>" in html
    facts = json.loads((tmp_path / "why" / "answer.json").read_text(encoding="utf-8"))
    assert facts["abstention"]["abstain"] is abstains
    assert facts["predicted"] in NAMES


def test_a_score_is_accepted_below_its_limit(own: Gate, evaluated: Path, tmp_path: Path) -> None:
    image = evaluated / "new" / "000.png"
    row = own.explain(image).row
    for name, value in (("score", row.score), ("score.knn", row.parts["knn"])):
        assert value is not None
        for shift in (-1.0, 1.0):
            place = with_rule(tmp_path / "e", evaluated, confidence=name, accepted="below", limit=value + shift)
            answer = own.explain(image, abstain=place, abstain_by=name).row.answer
            assert answer is not None
            assert answer.believed is not None
            assert answer.believed.abstain is (shift < 0)


def test_another_gate_and_no_gate_are_refused(own: Gate, evaluated: Path, discs: Path, tmp_path: Path, module: Counted) -> None:
    other = offmap.fit(few(discs), recipe=write_recipe(tmp_path, PARTS), encoder=named(module), jobs=0, seed=1)
    image = evaluated / "new" / "000.png"
    with pytest.raises(ConfigError, match=rf"was made for the gate {own.id}, this is {other.id}"):
        other.explain(image, abstain=evaluated / "evaluation")
    offmap.evaluate(evaluated / "preds.csv", risk=0.1, repeats=100).save(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"does not say of which gate it is.*--gate"):
        own.explain(image, abstain=tmp_path / "none")


def test_columns_that_the_gate_does_not_give_are_refused(own: Gate, evaluated: Path, tmp_path: Path) -> None:
    image, place = evaluated / "new" / "000.png", evaluated / "evaluation"
    for asked, says in (
        ("confidence", "has no rule for 'confidence'"),
        ("score.vim", "has no rule for 'score.vim'"),
        ("scor", "did you mean 'score'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)):
            own.explain(image, abstain=place, abstain_by=asked)
    with pytest.raises(ConfigError, match=r"has no rule for a number that the gate gives.*Its columns: confidence"):
        own.explain(image, abstain=with_rule(tmp_path / "e", evaluated, confidence="confidence"))
    with pytest.raises(ConfigError, match="goes with abstain"):
        own.explain(image, abstain_by="score")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"rules": 3}', "\x00\xff", '{"rules": [{"method": "learn_then_test"}]}', '{"rules": [7]}'],
)
def test_a_damaged_file_is_told(own: Gate, evaluated: Path, tmp_path: Path, text: str) -> None:
    place = tmp_path / "abstention.json"
    named_too = text.replace('{"rules"', f'{{"gate": {{"id": "{own.id}"}}, "rules"')
    place.write_text(named_too, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"abstention\.json.* is damaged"):
        own.explain(evaluated / "new" / "000.png", abstain=tmp_path)
    for bad in (
        {"limit": "high"},
        {"limit": None},
        {"limit": float("nan")},
        {"accepted": "sideways"},
        {"coverage": 3},
        {"promise": None, "probability": None},
    ):
        with pytest.raises(ConfigError, match="rule 0 lacks or garbles"):
            own.explain(evaluated / "new" / "000.png", abstain=with_rule(tmp_path / "e", evaluated, **bad))
    with pytest.raises(ConfigError, match="there is no such file"):
        own.explain(evaluated / "new" / "000.png", abstain=tmp_path / "nowhere")


def test_scores_of_other_parts_are_not_of_this_gate(evaluated: Path, discs: Path, tmp_path: Path) -> None:
    plain(discs, tmp_path).save(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"the score table has the parts knn, energy, the gate .* has knn: it is not of this gate"):
        offmap.evaluate(evaluated / "preds.csv", scores=evaluated / "scores.csv", gate=tmp_path / "other")


def test_an_image_that_is_not_assessed_has_no_answer(own: Gate, evaluated: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="is not assessed"):
        own.explain(tmp_path / "x.png", abstain=with_rule(tmp_path / "e", evaluated))


def test_the_command_tells_both_things(tmp_path: Path, evaluated: Path, own: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offmap, "load", lambda *args, **options: own)
    place = with_rule(tmp_path / "e", evaluated, limit=1.0)
    words = [str(evaluated / "gate"), str(evaluated / "new" / "000.png"), "--out", str(tmp_path / "why"), "--abstain", str(place)]
    done = CliRunner().invoke(app, ["explain", *words])
    assert done.exit_code == 0, done.output
    assert "In scope: " in done.output
    assert "Would abstain at your risk limit: yes (max_probability = " in done.output
    done = CliRunner().invoke(app, ["explain", *words, "--json"])
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["answer"]["abstention"]["abstain"] is True


def test_a_report_of_a_run_shows_answers(own: Gate, evaluated: Path, tmp_path: Path, module: Counted) -> None:
    few = sorted((evaluated / "new").iterdir())[:3]
    module.seen = 0
    own.score_to(few, tmp_path / "s.csv", report=tmp_path / "report", jobs=0, use_cache=False)
    assert module.seen == 3
    html = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert html.count("What the classifier answers") == 3

"""A study's file and its table: what is refused, and with which words."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from tests.benchmark.study_world import COLUMNS, rows_of, table, write

from offmap.benchmark.study_file import METHODS, read_study, shipped
from offmap.benchmark.study_images import classes, cramers_v, find_images, value
from offmap.benchmark.study_networks import methods_of
from offmap.core.errors import ConfigError
from offmap.datasets import local

NAMES = {"brain-mr", "chest-xray", "fetal-planes"}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write(tmp_path)


def changed(toy: Path, *pairs: tuple[str, str], more: str = "") -> Path:
    text = toy.read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after, 1)
    toy.write_text(text + more)
    return toy


def test_what_is_read(toy: Path) -> None:
    study = read_study(toy)
    assert [task.name for task in study.tasks] == ["plane", "machine", "side"]
    assert [task.flips for task in study.tasks] == [True, True, False]
    assert study.clinical.name == "plane"
    assert study.methods == METHODS
    assert (study.shares, study.seeds, study.passes, study.plan.hidden) == ((0.5, 0.2, 0.3), (1, 2), 5, 8)
    images = find_images(study)
    assert len(images.own) == 80
    assert {name: len(items) for name, items in images.shifts.items()} == {"other machine": 16, "foot": 16}
    assert {value(item, "machine") for item in images.own} == {"A", "B"}
    assert images.columns == ("plane", "machine", "sex")
    assert len({item.patient for item in images.own}) == 40
    assert not any("person" in item.source.meta for item in images.own)


def test_a_cut_takes_images_of_all_kinds_and_the_same_ones_each_time(toy: Path) -> None:
    changed(toy, ('name = "toy"', 'name = "toy"\nmax = 40\nmax_shift = 5'))
    one, other = find_images(read_study(toy)), find_images(read_study(toy))
    assert len(one.own) == 40
    assert one == other
    assert {(value(item, "plane"), value(item, "machine")) for item in one.own} == {(p, m) for p in ("head", "heart") for m in "AB"}
    assert len(one.shifts["foot"]) == 5


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (
            [('column = "machine"', 'column = "machines"')],
            r"task 'machine': table.csv has no column 'machines'.*machine.*It has: plane, machine, sex",
        ),
        ([('machine = "C"', 'site = "C"')], r"shift 'other machine': table.csv has no column 'site'"),
        (
            [('plane = "foot"', 'plane = "hand"')],
            r"shift 'foot' of study toy has no images: none of 112 has plane = hand; plane is one of foot",
        ),
        ([('plane = "foot"', 'plane = ["foot", "head"]')], r"shift 'foot' of study toy: 40 of its 64 images are in distribution too"),
        ([('machine = ["A", "B"]', 'machine = "A"')], r"task 'machine': the column 'machine' has one class only, 'A', among the 40"),
        ([('column = "machine"', 'column = "machine"\nmade = "rotation"')], r"\[\[task\]\] machine: either 'column' or 'made'"),
        ([('made = "laterality flip"', 'made = "sharpness"')], r"no task 'sharpness'"),
        ([('made = "laterality flip"', 'made = "laterality flip"\nflips = true')], r"flips = true is not valid for 'laterality flip'"),
        ([("clinical = true", "clinical = false")], r"one task must have clinical = true, 0 have: none"),
        ([('kind = "semantic"', 'kind = "semantics"')], r"kind = 'semantics'.*semantic.*must be one of image_characteristics, semantic"),
        ([('damage = "noise"', 'damage = "nois"')], r"there is no damage 'nois'.*noise"),
        ([("severity = 5", "severity = 6")], r"a severity from 1 to 5"),
        ([('damage = "noise"', 'damage = "noise"\npaths = ["im"]')], r"one of 'where', 'paths' and 'damage'"),
        ([('name = "foot"', 'name = "damaged"')], r"two \[\[shift\]\] of the name 'damaged'"),
        ([("repeats = 100", "repeats = 10")], r"repeats = 10 be 100 or more"),
        ([("members = 2", "members = 1")], r"members = 1 2 to 100"),
        ([("hidden = 8", "hiden = 8")], r"unknown key 'hiden'.*hidden"),
        ([('table = "table.csv"', 'table = "tables.csv"')], r"the table tables.csv is not there below .*--data DIR"),
        ([('table = "table.csv"', 'table = "table.csv"\npath = "file"')], r"has no column 'file'.*It has: path, plane"),
        ([('patient = "person"', 'patient = "persons"')], r"has no column 'persons'.*person.* that tells patients apart"),
        ([('table = "table.csv"', "")], r"either 'table' or 'paths'"),
        ([('where = { plane = ["head", "heart"], machine = ["A", "B"] }', 'where = { plane = "tail" }')], r"no image is in distribution"),
    ],
)
def test_refusals_name_the_thing_and_the_way_out(toy: Path, pairs: list[tuple[str, str]], says: str) -> None:
    changed(toy, *pairs)
    with pytest.raises(ConfigError, match=says) as error:
        find_images(read_study(toy))
    assert not any(f"p{i}" in str(error.value).split() for i in range(60))


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ('["mps"]', r"there is no method 'mps'.*msp"),
        ('["odin"]', r"'odin' cannot take part: it needs odin.logits.*no gradients, maps or images"),
        ('["patchcore"]', r"'patchcore' cannot take part: it needs feature_map"),
        ('["evidential"]', r"'evidential' cannot take part: .*trained evidentially"),
        ('["msp", "msp"]', r"may name each once"),
    ],
)
def test_methods_that_cannot_take_part(toy: Path, methods: str, says: str) -> None:
    changed(toy, ('name = "toy"', f'name = "toy"\nmethods = {methods}'))
    with pytest.raises(ConfigError, match=says):
        methods_of(read_study(toy))


def test_passes_with_dropout_need_dropout(toy: Path) -> None:
    changed(toy, ("hidden = 8", "hidden = 8\ndropout = 0.0"))
    with pytest.raises(ConfigError, match="'mc_dropout_entropy' cannot take part: dropout = 0"):
        methods_of(read_study(toy))


def test_an_empty_label_of_one_task(toy: Path) -> None:
    rows = rows_of(toy.parent)
    rows[5][3] = ""
    table(toy.parent, rows)
    study = read_study(changed(toy, ('column = "machine"', 'column = "sex"')))
    with pytest.raises(ConfigError, match=r"'sex' is empty for 1 of 80 in-distribution images, im/005.png for example; fill it, or leave"):
        find_images(study)


def test_a_rare_class_is_refused_and_can_be_renamed(toy: Path) -> None:
    rows = rows_of(toy.parent)
    for i in range(3):
        rows[i][3] = "x"
    table(toy.parent, rows)
    study = read_study(changed(toy, ('column = "machine"', 'column = "sex"')))
    with pytest.raises(ConfigError, match=r"its class 'x' has 3 in-distribution images"):
        find_images(study)
    study = read_study(changed(toy, ('column = "sex"', 'column = "sex"\nrename = { x = "m" }')))
    assert classes(study.tasks[1], find_images(study).own) == ("f", "m")


def test_a_line_of_the_table_that_is_cut_short(toy: Path) -> None:
    table(toy.parent, [["im/000.png", "head"], *rows_of(toy.parent)[1:]])
    with pytest.raises(ConfigError, match=r"line 2 of table.csv has 2 cells, its head 5"):
        find_images(read_study(toy))


def test_the_folder_is_not_there(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder of the images .*nowhere' is not there; name it with --data DIR"):
        read_study(toy, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    table(tmp_path / "empty", rows_of(toy.parent))
    with pytest.raises(ConfigError, match=r"none of the 112 images is below .*im/000.png for example"):
        find_images(read_study(toy, tmp_path / "empty"))


def test_folders_instead_of_a_table(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("left", "right", "else"):
        (tmp_path / name).mkdir()
        for i in range(8):
            (tmp_path / name / f"{i}.png").write_bytes((tmp_path / "im" / f"{i:03d}.png").read_bytes())
    (tmp_path / "folders.toml").write_text(
        'name = "folders"\n[images]\npaths = ["left", "right"]\n[[task]]\nname = "side"\ncolumn = "folder"\nclinical = true\n'
        '[[shift]]\nname = "else"\nkind = "semantic"\npaths = ["else"]\n'
    )
    study = read_study(tmp_path / "folders.toml")
    images = find_images(study)
    assert classes(study.tasks[0], images.own) == ("left", "right")
    assert len(images.shifts["else"]) == 8
    text = (tmp_path / "folders.toml").read_text().replace('paths = ["else"]', 'paths = ["elsewhere"]')
    (tmp_path / "folders.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"shift 'else' of study folders has no images: no files in elsewhere"):
        find_images(read_study(tmp_path / "folders.toml"))


def test_the_shipped_studies_read_and_say_what_they_are(tmp_path: Path) -> None:
    assert set(shipped()) == NAMES
    for name in NAMES:
        study = read_study(name, tmp_path)
        header = (resources.files("offmap.benchmark") / "studies" / f"{name}.toml").read_text(encoding="utf-8").partition("\nname = ")[0]
        assert study.name == name
        assert f'study "{name}"' in header
        assert "--data DIR" in header
        assert "licence" in header.lower()
        assert {shift.kind for shift in study.shifts} == {"image_characteristics", "semantic"}
    with pytest.raises(ConfigError, match=r"there is no study 'chest-x-ray'.*chest-xray"):
        read_study("chest-x-ray")


def test_the_local_studies_find_their_images() -> None:
    root = local.find()
    if root is None or not (root / "index.csv").is_file():
        pytest.skip("no local data ($OFFMAP_DATA)")
    for name in ("chest-xray", "brain-mr"):
        images = find_images(read_study(name, root))
        assert len(images.own) >= 400
        assert all(len(items) >= 100 for items in images.shifts.values())


def test_a_table_of_the_form_of_fetal_planes_db(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "Images").mkdir()
    rows, count = [], 0
    for plane in ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other"):
        for machine in ("Voluson E6", "Voluson S10", "Aloka"):
            for i in range(6):
                name = f"Patient{count:05d}_Plane1_1_of_1"
                (tmp_path / "Images" / f"{name}.png").write_bytes((tmp_path / "im" / "000.png").read_bytes())
                brain = "Trans-thalamic" if plane == "Fetal brain" else "Not A Brain"
                rows.append((name, str(count), plane, brain, f"Op. {1 + i % 2}", machine, "1 "))
                count += 1
    columns = ("Image_name", "Patient_num", "Plane", "Brain_plane", "Operator", "US_Machine", "Train ")
    table(tmp_path, rows, delimiter=";", columns=columns)
    (tmp_path / "table.csv").rename(tmp_path / "FETAL_PLANES_DB_data.csv")
    images = find_images(read_study("fetal-planes", tmp_path))
    assert len(images.own) == 48
    assert {name: len(items) for name, items in images.shifts.items()} == {"other machines": 24, "maternal cervix": 12}
    assert images.columns == ("Plane", "Brain_plane", "Operator", "US_Machine", "Train")
    assert images.own[0].source.path == tmp_path / "Images" / "Patient00000_Plane1_1_of_1.png"
    assert all(item.patient for item in images.own)


def test_cramers_v_is_that_of_scipy() -> None:
    from scipy.stats.contingency import association

    rng = np.random.default_rng(0)
    one, noise = rng.integers(0, 3, 200), rng.integers(0, 4, 200)
    other = np.where(rng.random(200) < 0.5, one, noise)
    counts = np.zeros((3, 4), dtype=int)
    np.add.at(counts, (one, other), 1)
    assert cramers_v([str(v) for v in one], [str(v) for v in other]) == pytest.approx(association(counts, method="cramer"))
    assert cramers_v(["a", "b", "a"], ["x", "y", "x"]) == pytest.approx(1)
    assert cramers_v(["a", "a"], ["x", "y"]) == 0
    assert COLUMNS[0] == "path"

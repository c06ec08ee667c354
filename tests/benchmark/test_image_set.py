"""Sets of images from folders, tables, lists and arrays."""

from pathlib import Path

import numpy as np
import pytest

from offmap.benchmark.image_set import ImageSet, Item, find, sources_of
from offmap.core.errors import ConfigError
from offmap.core.types import Image
from offmap.read.load import load

TABLE = "path,finding,who\na/0.png,benign,p1\na/1.png,malignant,p1\na/2.png,benign,p2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image as Pillow

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)
            Pillow.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (tmp_path / "table.csv").write_text(TABLE)
    arrays = {
        "images": np.random.default_rng(0).integers(0, 255, (6, 12, 12), dtype=np.uint8),
        "labels": np.array([[0], [1], [1], [0], [2], [1]], dtype=np.uint8),
        "short": np.zeros(2),
    }
    np.savez_compressed(tmp_path / "arrays.npz", **arrays)
    return tmp_path


def names(items: list[Item]) -> list[str]:
    return [item.name for item in items]


def test_folders_are_walked_in_sorted_order_and_give_classes(folder: Path) -> None:
    items = find(ImageSet("x", paths=("b", "a"), label="folder", patient="folder"), folder)
    assert names(items) == [f"{d}/{i}.png" for d in "ab" for i in range(3)]
    assert [item.label for item in items] == list("aaabbb")
    assert len({item.patient for item in items}) == 2


def test_a_constant_class_is_marked(folder: Path) -> None:
    assert {item.label for item in find(ImageSet("x", paths=("a",), label="=healthy"), folder)} == {"healthy"}
    with pytest.raises(ConfigError, match=r"no column 'healthy'\. Folders and lists have no columns; '=text'"):
        find(ImageSet("x", paths=("a",), label="healthy"), folder)


def test_a_table_keeps_its_order_and_is_filtered(folder: Path) -> None:
    asked = ImageSet("x", paths=("table.csv",), label="finding", patient="who", where={"finding": ("benign",)})
    items = find(asked, folder)
    assert [(item.name, item.label) for item in items] == [("a/0.png", "benign"), ("a/2.png", "benign")]
    assert items[0].patient != items[1].patient
    assert "p1" not in repr(items)
    assert find(asked, folder, limit=1) == items[:1]


def test_patients_are_digests_that_agree(folder: Path) -> None:
    first, second, third = (item.patient for item in find(ImageSet("x", paths=("table.csv",), patient="who"), folder))
    assert first == second != third
    assert first not in ("", "p1")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (ImageSet("x", paths=("table.csv",), label="findings"), "no column 'findings'; did you mean 'finding'"),
        (ImageSet("x", paths=("table.csv",), where={"finding": ("odd",)}), "none of the 3 images of table.csv has finding = odd"),
        (ImageSet("x", paths=("c",)), "no files in c below"),
        (ImageSet("x", paths=("a", "c")), "no files in c below"),
        (ImageSet("x", paths=("*.tif",)), "no file matches"),
        (ImageSet("x", paths=("arrays.npz::image",)), "no array 'image'; did you mean 'images'"),
        (ImageSet("x", paths=("arrays.npz::images",), label="lables"), "no array 'lables'; did you mean 'labels'"),
        (ImageSet("x", paths=("arrays.npz::images",), label="short"), "has 2 values for 6 images"),
        (ImageSet("x", paths=("table.csv::images",)), "cannot be read"),
        (ImageSet("x", paths=("data:breastmnits::train_images",)), "did you mean 'breastmnist'"),
        (ImageSet("x", paths=("data:breastmnist::train_images",)), "offmap data get breastmnist"),
        (ImageSet("x", list="none.txt"), "there is no list none.txt"),
        (ImageSet("x", list="empty.txt"), "the list empty.txt below .* is empty"),
        (ImageSet("x", list="list.txt", list_root="nowhere"), "no folder nowhere below"),
        (ImageSet("x", list="list.txt", list_root="b"), "none of the 3 files that list.txt names exists"),
        (ImageSet("x", list="list.txt", label="kind"), "no column 'kind'"),
        (ImageSet("x", list="a"), "the list a cannot be read"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, asked: ImageSet, says: str) -> None:
    (folder / "empty.txt").write_text("\n \n")
    (folder / "list.txt").write_text("a/0.png 0\na/1.png 1\na/2.png -1\n")
    with pytest.raises(ConfigError, match=says):
        find(asked, folder)


def test_a_list_has_paths_and_classes(folder: Path) -> None:
    (folder / "list.txt").write_text("\ufeffa/1.png 2\r\n\na/0.png 0\na/2.png -1\na/gone.png 1\na/with space.png\n", encoding="utf-8")
    items = find(ImageSet("x", list="list.txt"), folder)
    assert [(item.name, item.label) for item in items] == [
        ("a/1.png", "2"),
        ("a/0.png", "0"),
        ("a/2.png", ""),
        ("a/gone.png", "1"),
        ("a/with space.png", ""),
    ]
    rooted = ImageSet("x", list="list.txt", list_root="..")
    (folder / "list.txt").write_text(f"{folder.name}/a/1.png 2\n")
    assert find(rooted, folder)[0].source.path.resolve() == (folder / "a" / "1.png").resolve()


def test_images_of_an_array_have_the_names_that_reading_gives_them(folder: Path) -> None:
    asked = ImageSet("x", paths=("arrays.npz::images",), label="labels", where={"labels": ("1", "2")})
    items = find(asked, folder)
    assert [(item.name, item.label) for item in items] == [
        ("arrays.npz::images[1]", "1"),
        ("arrays.npz::images[2]", "1"),
        ("arrays.npz::images[4]", "2"),
        ("arrays.npz::images[5]", "1"),
    ]
    sources = sources_of(items)
    assert len(sources) == 1
    read = [outcome for outcome in load(sources[0]) if isinstance(outcome, Image)]
    assert set(names(items)) < {image.item for image in read}


def test_a_known_data_set_is_taken_from_the_folder_or_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = folder / "cache" / "data"
    cache.mkdir(parents=True)
    monkeypatch.setenv("OFFMAP_CACHE", str(folder / "cache"))
    (folder / "arrays.npz").rename(cache / "breastmnist.npz")
    asked = ImageSet("x", paths=("data:breastmnist::images",))
    assert find(asked, folder)[0].source.path == cache / "breastmnist.npz"
    (folder / "medmnist").mkdir()
    (cache / "breastmnist.npz").rename(folder / "medmnist" / "breastmnist.npz")
    assert names(find(asked, folder))[0] == "medmnist/breastmnist.npz::images[0]"


def test_a_volume_is_one_item_where_that_is_asked(folder: Path) -> None:
    np.savez(folder / "volumes.npz", v=np.random.default_rng(0).integers(0, 255, (2, 5, 16, 16), dtype=np.uint8))
    asked = ImageSet("x", paths=("volumes.npz::v",))
    assert names(find(asked, folder, volumes=True)) == ["volumes.npz::v[0]", "volumes.npz::v[1]"]
    assert len(find(asked, folder)) == 10

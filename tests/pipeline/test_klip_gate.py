"""The recipe klip: gates that keep operator, sampler and prior, on a network that is the denoiser of a Gaussian until it is trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import offmap
from offmap.core.encoder import Encoder
from offmap.core.errors import BundleError, ConfigError, DataError
from offmap.core.types import Signals
from offmap.pipeline import fit as fitting
from offmap.pipeline import recipe as recipes
from offmap.pipeline.gate import Gate
from offmap.pipeline.toml import to_toml
from offmap.represent.diffusion import DiffusionEncoder
from offmap.represent.klip import KlipEncoder
from offmap.represent.klip_prior import Klip, PriorKlipEncoder
from offmap.represent.nets.unet import EDMDenoiser, UNetShape
from offmap.represent.open import open_encoder, rebuild
from offmap.represent.posterior.edm import EDM

pytest.importorskip("monai", reason="needs the extra [generative]")
pytest.importorskip("einops", reason="needs the extra [generative]")

SIDE, SPREAD = 16, 0.25
SETTINGS = {
    "klip.operator": "ct:views=12,noise=0.01",
    "klip.windows": "10",
    "klip.sampler.steps": "10",
    "klip.sampler.samples": "2",
    "klip.sampler.sigma_max": "10",
    "klip.sampler.deviation": str(SPREAD),
    "score.klip.window": "[0.0, 1.0]",
    "score.klip.cells": "1",
}


def prior() -> DiffusionEncoder:
    """The last layer of an untrained network is 0, so that ``D = s^2 x / (s^2 + sigma^2)``: grey pixels, each by itself."""
    return DiffusionEncoder(EDMDenoiser(UNetShape(1, 2, (8, 8), 1), SPREAD), SIDE)


def grey(count: int, seed: int, *, odd: bool = False) -> np.ndarray:
    x = SPREAD * np.random.default_rng(seed).standard_normal((count, SIDE, SIDE))
    x[:, 8:12, 4:8] += 1.2 * odd
    return np.asarray(255 * np.clip((x + 1) / 2, 0, 1), dtype=np.uint8)


def write(folder: Path, pictures: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        Pillow.fromarray(picture).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prior")
    prior().save(place)
    return place


@pytest.fixture(scope="module")
def gate(folder: Path) -> Gate:
    return offmap.fit(grey(30, 0), axes="NHW", recipe="klip", encoder=f"diffusion:{folder}", settings=SETTINGS, jobs=0)


def test_an_untrained_network_is_the_denoiser_of_a_gaussian() -> None:
    x, sigma = torch.randn(2, 1, SIDE, SIDE), torch.tensor([0.1, 2.0])
    with torch.no_grad():
        found = prior().denoiser(x, sigma)
    torch.testing.assert_close(found, x * SPREAD**2 / (SPREAD**2 + sigma.square().view(-1, 1, 1, 1)))


def test_the_gate_keeps_operator_sampler_and_prior_and_needs_nothing_else(gate: Gate, tmp_path: Path) -> None:
    gate.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    assert isinstance(again.encoder, PriorKlipEncoder)
    assert again.encoder.operator.params()["views"] == 12
    assert again.encoder.sampler == EDM(steps=10, samples=2, sigma_max=10.0, deviation=SPREAD)
    usual, odd = (again.score(grey(5, 2, odd=o), axes="NHW").to_pandas()["p_value"] for o in (False, True))
    assert odd.max() < 0.1 < usual.median()
    assert again.score(grey(5, 2), axes="NHW").rows == gate.score(grey(5, 2), axes="NHW").rows
    card = again.card["encoder"]
    assert (card["operator"], card["prior"]) == ("ct:arc=180,noise=0.01,views=12", "kept in the gate")
    assert "simulated with ct" in " ".join(again.card["limits"])


def test_half_precision_is_a_setting_and_changes_scores_little(folder: Path, gate: Gate) -> None:
    half = offmap.fit(
        grey(30, 0), axes="NHW", recipe="klip", encoder=f"diffusion:{folder}", settings={**SETTINGS, "klip.precision": "bfloat16"}, jobs=0
    )
    assert half.encoder.sha256 != gate.encoder.sha256
    ours, theirs = (one.score(grey(5, 2), axes="NHW").to_pandas()["score.klip"] for one in (half, gate))
    assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-2)


def test_another_prior_is_refused(gate: Gate, tmp_path: Path) -> None:
    gate.save(tmp_path / "gate")
    other = DiffusionEncoder(EDMDenoiser(UNetShape(1, 2, (8, 8), 1), 0.3), SIDE)
    with pytest.raises(BundleError, match="other values of sigma_data"):
        offmap.load(tmp_path / "gate", encoder=other)
    same = offmap.load(tmp_path / "gate", encoder=prior())
    assert same.score(grey(2, 4), axes="NHW").rows == gate.score(grey(2, 4), axes="NHW").rows


def test_a_gate_of_a_damaged_encoder_is_refused(gate: Gate) -> None:
    config, state = gate.encoder.config(), gate.encoder.state()
    for changed in ({"choice": {**config["choice"], "cell": 2}}, {"choice": {"cells": 2}}, {"base": None}):
        with pytest.raises(BundleError):
            rebuild({**config, **changed}, state)


def test_the_diffusion_model_of_one_gate_is_the_prior_of_another(folder: Path, gate: Gate, tmp_path: Path) -> None:
    gate.save(tmp_path / "gate")
    assert open_encoder(f"diffusion:{tmp_path / 'gate'}").sha256 == open_encoder(f"diffusion:{folder}").sha256
    (tmp_path / "plain.toml").write_text("[prepare.window]\n[prepare.resize]\nsize = 32\n[score.intensity]\n")
    plain = offmap.fit(grey(12, 0), axes="NHW", recipe=str(tmp_path / "plain.toml"), jobs=0)
    plain.save(tmp_path / "plain")
    with pytest.raises(ConfigError, match="keeps no diffusion model"):
        open_encoder(f"diffusion:{tmp_path / 'plain'}")


def test_one_command_trains_the_prior_and_calibrates_on_other_images(tmp_path: Path) -> None:
    small = {"size": "16", "widths": "[8, 8]", "steps": "30", "batch": "8", "warmup": "5", "check_every": "15"}
    settings = SETTINGS | {f"train.{key}": value for key, value in small.items()}
    pictures = grey(70, 0)
    pictures[3] = 0
    pictures[3, 0, 0] = 20
    trained = offmap.fit(pictures, axes="NHW", recipe="klip", settings=settings, jobs=0)
    trained.save(tmp_path / "gate")
    again = offmap.load(tmp_path / "gate")
    assert again.score(grey(3, 2), axes="NHW").rows == trained.score(grey(3, 2), axes="NHW").rows
    assert trained.card["training"]["trainer"] == "diffusion"
    counts = trained.card["training"]["images"]
    assert trained.scorer.ranks.n <= counts["gate"] < 70


def test_images_that_are_reconstructed_as_air_get_a_row_with_the_reason(gate: Gate, tmp_path: Path) -> None:
    pictures = grey(4, 3)
    pictures[2] = 0
    pictures[2, 0, 0] = 1
    rows = gate.score(pictures, axes="NHW").rows
    assert [row["reason"] for row in rows] == [None, None, "no_foreground", None]
    assert rows[2]["verdict"] == "not_assessed"
    train = np.concatenate([grey(12, 0), pictures])
    settings = SETTINGS
    prior().save(tmp_path / "p")
    fitted = offmap.fit(train, axes="NHW", recipe="klip", encoder=f"diffusion:{tmp_path / 'p'}", settings=settings, jobs=0)
    assert fitted.card["data"]["dropped"] == {"no_foreground": 1}


def test_signals_are_kept_by_content_so_that_nothing_is_sampled_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, spec = write(tmp_path / "images", grey(12, 0)), f"diffusion:{folder}"
    black = np.zeros((SIDE, SIDE), np.uint8)
    black[0, 0] = 1
    Pillow.fromarray(black).save(images / "black.png")
    first = offmap.fit(images, recipe="klip", encoder=spec, settings=SETTINGS, jobs=0)

    def sampled(self: KlipEncoder, y: torch.Tensor, seeds: list[int], needs: frozenset[str]) -> dict[str, torch.Tensor]:
        raise AssertionError("an image was sampled again")

    monkeypatch.setattr(KlipEncoder, "_signals", sampled)
    again = offmap.fit(images, recipe="klip", encoder=spec, settings=SETTINGS | {"score.klip.cells": "2"}, jobs=0)
    assert again.card["data"]["dropped"] == first.card["data"]["dropped"] == {"no_foreground": 1}
    with pytest.raises(AssertionError, match="sampled again"):
        offmap.fit(images, recipe="klip", encoder=spec, settings=SETTINGS | {"klip.operator": "identity"}, jobs=0)


def test_gates_of_more_images_than_maps_are_kept_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MAP_ROWS", 8)
    fitted = offmap.fit(grey(20, 0), axes="NHW", recipe="klip", encoder=f"diffusion:{folder}", settings=SETTINGS, jobs=0)
    assert fitted.scorer.ranks.n == 20


def test_loading_tries_the_gate_out_with_few_passes(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate.save(tmp_path / "gate")
    asked: list[tuple[int, int]] = []
    before = KlipEncoder.encode

    def counted(self: KlipEncoder, images: torch.Tensor, needs: frozenset[str]) -> Signals:
        asked.append((self.sampler.steps, self.sampler.samples))
        return before(self, images, needs)

    monkeypatch.setattr(KlipEncoder, "encode", counted)
    offmap.load(tmp_path / "gate")
    assert asked == [(10, 1)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"klip.cell": "5"}, "cell = 5 does not divide the image's side of 16"),
        ({"score.klip.cells": "3"}, r"\[score.klip\].* 4 x 4 cannot be cut into blocks of 3; blocks of 1, 2, 4 fit"),
        ({"score.klip.window": "[0.05, 1.0]"}, r"multiples of 1/10"),
        ({"klip.windows": "7"}, "no multiple of windows = 7"),
        ({"klip.modality": "MR"}, "measures CT images, the prior or gate was made with MR"),
        ({"klip.operator": "tc"}, "there is no operator 'tc'; did you mean 'ct'"),
        ({"klip.sampler.step": "5"}, "did you mean 'steps'"),
        ({"klip.sampler.method": "emd"}, r"method = 'emd' is unknown; there are: ddpm, edm"),
        ({"klip.explained": "[4, 1]"}, "least < largest"),
        ({"klip.precision": "float16"}, "float16"),
    ],
)
def test_what_does_not_fit_is_refused_before_an_image_is_read(folder: Path, settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        offmap.fit("nowhere", recipe="klip", encoder=f"diffusion:{folder}", settings={**SETTINGS, **settings})


def test_an_encoder_that_is_no_diffusion_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a diffusion model, the encoder is builtin"):
        offmap.fit("nowhere", recipe="klip", encoder="builtin")
    with pytest.raises(ConfigError, match="--volumes does not go with"):
        offmap.fit("nowhere", recipe="klip", volumes=True)


def test_images_of_another_modality_than_the_operator_measures_are_left_out(folder: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    for i, picture in enumerate(grey(12, 0)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.MRImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        scan = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        scan.Modality, scan.Rows, scan.Columns, scan.SamplesPerPixel = "MR", SIDE, SIDE, 1
        scan.SOPClassUID, scan.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        scan.PhotometricInterpretation, scan.PixelRepresentation = "MONOCHROME2", 0
        scan.BitsAllocated = scan.BitsStored = 8
        scan.HighBit, scan.PixelData = 7, picture.tobytes()
        scan.save_as(tmp_path / f"{i}.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match="12 wrong_modality"):
        offmap.fit(tmp_path, recipe="klip", encoder=f"diffusion:{folder}", settings=SETTINGS, jobs=0)


def test_the_recipe_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    plan = recipes.read("klip", {**SETTINGS, "klip.sampler.method": "ddpm", "klip.sampler.sigma_max": "100"})
    assert plan.klip is not None
    assert plan.klip.sampler.method() == "ddpm"
    assert recipes.from_json(plan.to_json()) == plan
    (tmp_path / "klip.toml").write_text(to_toml(plan))
    assert recipes.read(str(tmp_path / "klip.toml")) == plan
    assert Klip.from_table(Klip().to_table()) == Klip()
    with pytest.raises(ConfigError, match="must be a table"):
        Klip.from_table({"sampler": "edm"})


def test_most_encoders_refuse_nothing_and_are_their_own_rehearsal() -> None:
    encoder: Encoder = prior()
    assert encoder.refused({}) == {}
    assert encoder.rehearsal() is encoder

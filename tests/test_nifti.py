"""BraTS cases in every form they are handed around in: what is read, what is prepared, and what is refused by name."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from memory import peak_memory

from cosquant_lite import datasets
from cosquant_lite.__main__ import main
from cosquant_lite.datasets import brats, nifti

SHARED = Path(os.environ.get("COSQUANT_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "brats"
real = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real BraTS cases: {SHARED} is absent")
LPS, RAS = np.diag([-1.0, -1, 1, 1]), np.eye(4)


def brain(shape=(20, 24, 18)):
    """Four modalities (4, X, Y, Z) of an off-centre box, told apart by their values, and a label with codes 0 to 3."""
    image, label = np.zeros((4, *shape), np.int16), np.zeros(shape, np.uint8)
    draws = np.random.default_rng(0)
    for i in range(4):
        image[i, 2:17, 3:21, 1:13] = 1000 * (i + 1) + draws.integers(0, 100, (15, 18, 12))
    label[5:12, 8:16, 4:10], label[6:10, 9:13, 5:9], label[7:9, 10:12, 6:8] = 1, 2, 3
    return image, label


def save(path, array, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def folder_case(root, name="Brats18_CBICA_AAB_1", year=2018, ending=".nii.gz", **changed):
    """A case as BraTS distributes it. changed: other arrays for some of the parts."""
    image, label = brain()
    codes = np.array([0, 2, 1, 4 if year < 2023 else 3], np.uint8)[label]
    names = ("flair", "t1", "t1ce", "t2", "seg") if year < 2023 else ("t2f", "t1n", "t1c", "t2w", "seg")
    join = "_" if year < 2023 else "-"
    for part, array in zip(names, (*image, codes)):
        save(root / name / f"{name}{join}{part}{ending}", changed.get(part, array))
    return root / name


def msd_case(root, affine=RAS):
    image, label = brain()
    flip = (slice(None, None, -1), slice(None, None, -1)) if affine is RAS else ()
    save(root / "imagesTr" / "BRATS_001.nii.gz", np.ascontiguousarray(np.moveaxis(image, 0, -1)[flip]), affine)
    save(root / "labelsTr" / "BRATS_001.nii.gz", np.ascontiguousarray(label[flip]), affine)
    return root / "imagesTr" / "BRATS_001.nii.gz"


@pytest.mark.parametrize("make", [
    lambda root: folder_case(root),
    lambda root: folder_case(root, ending=".nii"),
    lambda root: folder_case(root, "BraTS-GLI-00000-000", 2023),
    lambda root: msd_case(root),
], ids=["2018", "not compressed", "2023", "MSD"])  # fmt: skip
def test_every_form_is_read_as_the_same_case(tmp_path, make):
    path = make(tmp_path)
    assert nifti.find_cases(tmp_path) == [path]
    case, (image, label) = nifti.load_case(path), brain()
    torch.testing.assert_close(case.image, torch.from_numpy(image).float())
    assert torch.equal(case.label, torch.from_numpy(label))
    assert (case.image.dtype, case.label.dtype, case.spacing_mm) == (torch.float32, torch.uint8, 1.0)


def test_an_msd_list_is_followed(tmp_path):
    path = msd_case(tmp_path)
    listed = {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [listed]}))
    assert nifti.find_cases(tmp_path) == [path]


@pytest.mark.parametrize("make", [
    lambda root: folder_case(root / "more"),
    lambda root: msd_case(root / "more"),
    lambda root: np.savez(root / "case.npz", image=np.uint8(0)),
], ids=["a folder", "another MSD set", "a prepared case"])  # fmt: skip
def test_cases_beside_a_list_are_not_left_out_in_silence(tmp_path, make):
    test_an_msd_list_is_followed(tmp_path)
    make(tmp_path)
    with pytest.raises(ValueError, match=r"has cases that .*dataset\.json does not list, such as .*; import one"):
        nifti.find_cases(tmp_path)


@pytest.mark.parametrize("content", ["{bad", '{"training": ["a"]}', '{"training": [{"img": "x"}]}', "{}"])
def test_a_list_that_is_none_is_named(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=r"dataset\.json is no list of MSD cases"):
        nifti.find_cases(tmp_path)


def test_cases_that_could_not_be_used_do_not_replace_those_that_can(tmp_path):
    for name in ("Brats18_2013_1_1", "Brats18_2013_2_1"):
        folder_case(tmp_path / "raw", name)
    nifti.prepare(tmp_path / "raw", tmp_path / "data", 16)
    folder_case(tmp_path / "one")
    with pytest.raises(ValueError, match="of 1 BraTS cases none is left to test with"):
        nifti.prepare(tmp_path / "one", tmp_path / "data", 16)
    assert brats.load(tmp_path / "data").train_cases == ("Brats18_2013_2_1",)


def test_a_cube_holds_the_brain_and_keeps_small_structures(tmp_path):
    image, label = (torch.from_numpy(np.kron(array, np.ones((4, 4, 4)))) for array in brain())
    case = nifti.Case("large", image.float(), label.to(torch.uint8), 1.0)
    cube = nifti.cube(case, 32)
    assert cube["image"].shape == (4, 32, 32, 32)
    assert cube["spacing_mm"] == pytest.approx(4 * 18 / 32)  # the longest edge of the box is 18 * 4 mm
    for code in (1, 2, 3):
        volume = (cube["label"] == code).sum() * cube["spacing_mm"] ** 3
        assert volume == pytest.approx((case.label == code).sum().item(), rel=0.25)
    brightness = [np.median(x[x > 0]) * top / 255 for x, top in zip(cube["image"], cube["scale"])]
    assert brightness == pytest.approx([1050, 2050, 3050, 4050], rel=0.05)


def test_import_and_load(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COSQUANT_DATA", str(tmp_path / "data"))
    for name in ("Brats18_CBICA_AAB_1", "Brats18_CBICA_AAC_1", "Brats18_TCIA01_1_1"):
        folder_case(tmp_path / "raw", name)
    assert main(["data", "prepare", "brats", str(tmp_path / "raw"), "--size", "32"]) == 0
    volumes = datasets.load_data("brats", "real")
    assert volumes.train_cases == ("Brats18_CBICA_AAC_1", "Brats18_TCIA01_1_1")
    assert volumes.test_cases == ("Brats18_CBICA_AAB_1",)
    assert volumes.train_x.shape == (2, 4, 32, 32, 32)
    assert volumes.source == "BraTS, 3 cases (3 of BraTS 2018) at 32x32x32"
    assert main(["data", "verify"]) == 0
    before = (volumes.train_x, volumes.train_y)
    prepared = (tmp_path / "data" / "brats").rename(tmp_path / "prepared")
    assert main(["data", "prepare", "brats", str(prepared), "--size", "32"]) == 0
    again = datasets.load_data("brats", "real")
    assert torch.equal(again.train_x, before[0]), "a prepared case of the wanted size stays as it is"
    assert torch.equal(again.train_y, before[1])
    assert "3 cases" in capsys.readouterr().out


def damage_cut(case):
    file = next(case.glob("*_t2.nii.gz"))
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(("damage", "words"), [
    (lambda case: next(case.glob("*_t1ce*")).unlink(), r"CBICA_AAB_1: T1gd is missing \(\*t1ce.nii.gz or \*t1c.nii.gz\)"),
    (lambda case: next(case.glob("*_seg*")).unlink(), r"CBICA_AAB_1: label is missing"),
    (damage_cut, r"_t2.nii.gz cannot be read"),
    (lambda case: next(case.glob("*_t1.nii.gz")).write_bytes(b""), r"_t1.nii.gz cannot be read"),
    (lambda case: folder_case(case.parent, t2=brain((20, 24, 19))[0][0]), r"_t2.nii.gz is \(20, 24, 19\), but FLAIR is"),
    (lambda case: folder_case(case.parent, seg=brain()[1] * 2), r"_seg.nii.gz has the codes \[0.*, 6.0\]; allowed: 0, 1, 2"),
    (lambda case: folder_case(case.parent, t1=brain()[0][0] * 0), r"CBICA_AAB_1: T1w is empty"),
    (lambda case: folder_case(case.parent, t1=-brain()[0][0].astype(float)), r"CBICA_AAB_1: T1w is empty"),
    (lambda case: folder_case(case.parent, t2=brain()[0][0] - 1050.0), r"CBICA_AAB_1: T2w has many negative voxels"),
])  # fmt: skip
def test_a_bad_case_is_named_and_nothing_is_lost(tmp_path, monkeypatch, capsys, damage, words):
    monkeypatch.setenv("COSQUANT_DATA", str(tmp_path / "data"))
    for name in ("Brats18_2013_1_1", "Brats18_2013_2_1"):
        folder_case(tmp_path / "good", name)
    assert main(["data", "import", "brats", str(tmp_path / "good")]) == 0
    folder_case(tmp_path / "bad", "Brats18_CBICA_AAC_1")
    damage(folder_case(tmp_path / "bad"))
    assert main(["data", "import", "brats", str(tmp_path / "bad")]) == 2
    with pytest.raises(ValueError, match=words):
        nifti.prepare(tmp_path / "bad", tmp_path / "data")
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["brats"], "no half-made folder"
    capsys.readouterr()
    assert main(["data", "verify"]) == 0, "what was imported before is whole"


def test_a_download_goes_into_a_new_folder_and_is_unpacked_once(tmp_path, monkeypatch):
    msd_case(tmp_path / nifti.MSD)

    def fetched(url, archive, md5):
        assert nifti.MSD in url
        assert len(md5) == 32
        archive.parent.mkdir(parents=True)  # as the real one does
        with tarfile.open(archive, "w") as tar:
            tar.add(tmp_path / nifti.MSD, nifti.MSD)

    monkeypatch.setattr(nifti, "fetch", fetched)
    root = tmp_path / "new" / "data"
    for _ in range(2):
        assert nifti.find_cases(nifti.download(root)) == [root / nifti.MSD / "imagesTr" / "BRATS_001.nii.gz"]
    assert sorted(file.name for file in root.iterdir()) == [nifti.MSD, f"{nifti.MSD}.tar"]


def test_bad_folders_and_sizes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        nifti.prepare(tmp_path / "nothing", tmp_path)
    (tmp_path / "raw").mkdir()
    with pytest.raises(FileNotFoundError, match="no case found"):
        nifti.prepare(tmp_path / "raw", tmp_path)
    folder_case(tmp_path / "raw" / "HGG")
    with pytest.raises(ValueError, match="size must be a multiple of 16 from 16 to 240, got 60"):
        nifti.prepare(tmp_path / "raw", tmp_path, 60)
    folder_case(tmp_path / "raw" / "LGG")
    with pytest.raises(ValueError, match="two cases of the name Brats18_CBICA_AAB_1"):
        nifti.prepare(tmp_path / "raw", tmp_path)
    image = msd_case(tmp_path / "msd")
    (tmp_path / "msd" / "labelsTr" / "BRATS_001.nii.gz").unlink()
    with pytest.raises(ValueError, match="there is no label for it"):
        nifti.load_case(image)


@pytest.mark.parametrize(("arrays", "words"), [
    ({"image": np.zeros((4, 16, 16, 16), np.uint8)}, "label"),
    ({"image": np.zeros((3, 16, 16, 16), np.uint8), "label": np.zeros((16,) * 3, np.uint8)}, r"needed: uint8 \(4, S, S, S\)"),
    ({"image": np.zeros((4, 16, 16, 16), np.uint8), "label": np.zeros((8,) * 3, np.uint8)}, r"label \(8, 8, 8\), needed"),
    ({"image": np.zeros((4, 16, 16, 16), np.uint8), "label": np.zeros((16, 16, 8), np.uint8)}, r"label \(16, 16, 8\), needed"),
    ({"image": np.zeros((4, 16, 16, 16), np.float32), "label": np.zeros((16,) * 3, np.uint8)}, "image float32"),
    ({"image": np.zeros((4, 16, 16, 16), np.uint8), "label": np.full((16,) * 3, 4, np.uint8)}, r"unknown codes \[4\]"),
])  # fmt: skip
def test_a_bad_prepared_case_is_named(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"a\.npz.*{words}"):
        brats.read_prepared(tmp_path / "a.npz")


def test_a_prepared_case_that_lacks_what_another_size_needs_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 16, 16, 16), np.uint8), label=np.zeros((16,) * 3, np.uint8))
    with pytest.raises(ValueError, match=r"a\.npz is not a prepared BraTS case: scale, spacing_mm missing"):
        nifti.load_case(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", image=np.uint8(0), label=np.uint8(0))
    with pytest.raises(ValueError, match=r"image uint8 \(\) and label \(\), needed"):
        nifti.load_case(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("names", "words"),
    [(["Brats18_TCIA01_1_1", "Brats18_TCIA02_2_1"], "test with, as each site has one"), (["BRATS_001"], "train on")],
)
def test_cases_of_which_none_is_left_are_refused(names, words):
    cube = torch.zeros(len(names), 4, 8, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"of {len(names)} BraTS cases none is left to {words}"):
        brats.volumes(cube, cube[:, 0], names, "")


def test_cases_of_several_sizes_are_refused(tmp_path):
    (tmp_path / "brats").mkdir()
    for name, size in (("a", 8), ("b", 10)):
        cube = np.zeros((4, size, size, size), np.uint8)
        np.savez(tmp_path / "brats" / f"{name}.npz", image=cube, label=cube[0])
    (tmp_path / "brats" / "source.json").write_text('{"cases": ["a", "b"]}')
    with pytest.raises(ValueError, match="mixes cases of different size; prepare them again, together"):
        brats.load(tmp_path)


def test_sites_and_hold_out():
    names = ["Brats18_2013_2_1", "Brats18_2013_11_1", "Brats18_TCIA03_9_1", "BraTS2021_00006"]
    assert [brats.site(name) for name in names] == ["2013", "2013", "TCIA03", None]
    assert brats.held_out(names) == [3, 1], "the first by name of 2013, and what belongs to no site"
    assert brats.held_out([f"BRATS_{i:03}" for i in range(11)]) == [0, 5, 10]


def test_voxels_of_another_size_become_millimetres_and_labels_stay_labels(tmp_path):
    folder = folder_case(tmp_path)
    for file in folder.iterdir():
        save(file, np.asarray(nibabel.load(file).dataobj), np.diag([-2.0, -2, 2, 1]))
    case, (_, label) = nifti.load_case(folder), brain()
    assert case.label.shape == case.image.shape[1:] == tuple(2 * n - 1 for n in label.shape)
    for code in (1, 2, 3):
        assert (case.label == code).sum() == pytest.approx(8 * (label == code).sum(), rel=0.6)


def test_a_few_voxels_below_zero_are_what_interpolation_leaves(tmp_path):
    t2 = brain()[0][3]
    t2[0, 0, :18] = -5  # beside 3,240 voxels of brain
    assert nifti.load_case(folder_case(tmp_path, t2=t2)).image[3].min() == -5


def test_the_scale_is_a_quantile_of_the_brain_whatever_lies_around_it():
    image = torch.zeros(4, 40, 40, 40)
    image[:, 10:30, 10:30, 10:30] = torch.arange(1, 8001).view(20, 20, 20).float()
    cube = nifti.cube(nifti.Case("small", image, torch.zeros(40, 40, 40, dtype=torch.uint8), 1.0), 16)
    assert cube["scale"] == pytest.approx(4 * [0.995 * 8000], rel=0.001)


def test_the_smallest_size_is_sixteen(tmp_path):
    for name in ("Brats18_2013_1_1", "Brats18_2013_2_1"):
        folder_case(tmp_path / "raw", name)
    assert "at 16x16x16" in nifti.prepare(tmp_path / "raw", tmp_path / "data", 16)


def test_regions_are_those_that_brats_scores():
    named = {region: {brats.LABELS[code] for code in codes} for region, codes in brats.REGIONS.items()}
    core = {"non-enhancing tumour", "enhancing tumour"}
    assert named == {"whole tumour": {"oedema", *core}, "tumour core": core, "enhancing tumour": {"enhancing tumour"}}


def test_a_size_that_the_network_cannot_halve_four_times_is_refused(tmp_path):
    folder_case(tmp_path / "raw")
    with pytest.raises(ValueError, match="size must be a multiple of 16 from 16 to 240, got 24"):
        nifti.prepare(tmp_path / "raw", tmp_path / "data", 24)


def test_codes_of_both_conventions_and_a_modality_twice_are_named(tmp_path):
    codes = np.array([0, 2, 3, 4], np.uint8)[brain()[1]]
    with pytest.raises(ValueError, match=r"has the codes \[0.*\]; allowed: 0, 1, 2, and one of 3 and 4"):
        nifti.load_case(folder_case(tmp_path, seg=codes))
    twice = folder_case(tmp_path / "twice")
    shutil.copy(next(twice.glob("*_flair*")), twice / "other_flair.nii.gz")
    with pytest.raises(ValueError, match="FLAIR is there twice"):
        nifti.load_case(twice)


def test_a_prepared_case_is_read_in_its_own_brightness(tmp_path):
    for name in ("Brats18_2013_1_1", "Brats18_2013_2_1"):
        folder_case(tmp_path / "raw", name)
    nifti.prepare(tmp_path / "raw", tmp_path / "data", 32)
    case = nifti.load_case(next((tmp_path / "data" / "brats").glob("*.npz")))
    assert [x[x > 0].median().item() for x in case.image] == pytest.approx([1050, 2050, 3050, 4050], rel=0.05)


def test_a_voxel_of_a_cube_is_the_mean_of_what_it_covers():
    image = torch.randint(1, 1000, (4, 48, 48, 48), generator=torch.Generator().manual_seed(0)).float()
    cube = nifti.cube(nifti.Case("noise", image, torch.zeros(48, 48, 48, dtype=torch.uint8), 1.0), 16)
    means = image.view(4, 16, 3, 16, 3, 16, 3).mean((2, 4, 6))
    ours = torch.from_numpy(cube["image"]) * torch.from_numpy(cube["scale"]).view(4, 1, 1, 1) / 255
    torch.testing.assert_close(ours, means, rtol=0, atol=4)  # of 1,000 in 255 steps


def agreement(left: torch.Tensor, right: torch.Tensor) -> float:
    return (2 * (left & right).sum() / (left.sum() + right.sum())).item()


@pytest.fixture(scope="module")
def cubes():
    """What is made of the whole real cases, by path."""
    return {path: nifti.cube(nifti.load_case(path), 64) for path in nifti.find_cases(SHARED / "full")}


@real
def test_whole_real_cases_agree_with_their_prepared_ones(cubes):
    for path, ours in cubes.items():
        image, label = brats.read_prepared(SHARED / "small64" / f"{path.name}.npz")
        mine = torch.from_numpy(ours["label"])
        for codes in brats.REGIONS.values():
            wanted = torch.isin(label, torch.tensor(codes))
            if wanted.sum() > 1000:  # smaller ones differ by how they were resampled
                assert agreement(torch.isin(mine, torch.tensor(codes)), wanted) > 0.9, path
        brain = (image > 0).all(0)
        like = torch.corrcoef(torch.cat([torch.from_numpy(ours["image"])[:, brain], image[:, brain]]).float())[:4, 4:]
        assert like.argmax(1).tolist() == [0, 1, 2, 3], "each modality is most like itself"
        assert like.diagonal().min() > 0.9


@real
def test_a_whole_case_is_prepared_in_two_gigabytes():
    [path, *_] = nifti.find_cases(SHARED / "full")
    script = "from pathlib import Path; from cosquant_lite.datasets.nifti import *; cube(load_case(Path({path!r})), 64)"
    assert 2**28 < peak_memory(script.format(path=str(path))) < 2**31


@real
def test_real_msd_boxes_have_the_labels_and_channels_they_are_said_to_have():
    said = json.loads((SHARED / "msd" / "recon.json").read_text())
    cases = [nifti.load_case(path) for path in nifti.find_cases(SHARED / "msd")]
    assert [case.name for case in cases] == ["BRATS_009_box", "BRATS_119_box"]
    for case in cases:
        about = said[case.name.removesuffix("_box")]
        assert tuple(about["channels"]) == brats.MODALITIES
        assert torch.bincount(case.label.flatten().int(), minlength=4).tolist() == list(about["labels"].values())
        inside = [case.image[i][case.label == 3].mean() / case.image[i][case.label == 1].mean() for i in range(4)]
        assert inside[2] == max(inside), "enhancing tumour is what T1gd makes bright"


@real
def test_enhancing_tumour_is_bright_in_t1gd_in_every_form(cubes):
    cases = [(cube["image"], cube["label"]) for cube in cubes.values()]
    cases += [brats.read_prepared(path) for path in nifti.find_cases(SHARED / "small64")]
    gains = []
    for image, label in cases:
        image, label = np.asarray(image, float), np.asarray(label)
        if (label == 3).sum() > 200:
            means = [x[label == 3].mean() - x[label == 2].mean() for x in image / image.max((1, 2, 3), keepdims=True)]
            gains.append(means[2] == max(means))
    assert np.mean(gains) > 0.85, "against the non-enhancing core of the same case"

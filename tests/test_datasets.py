"""Importing CIFAR-10 in every allowed form, the embedded inputs, and what the command line says about them."""

import contextlib
import dataclasses
import hashlib
import io
import pickle
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from cosquant_lite import capture, datasets, federated, wire
from cosquant_lite.__main__ import main
from cosquant_lite.datasets import checksums, cifar10, embedded, partition, synthetic
from cosquant_lite.models import cnn, initial_weights

SHARED_TAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg.tar.gz"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("COSQUANT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def tree(tmp_path):
    """A tiny image folder: two images a class, each of one grey value that tells its class and part."""
    for part, offset in (("train", 0), ("test", 100)):
        for label, name in enumerate(cifar10.CLASSES):
            (tmp_path / "tree" / part / name).mkdir(parents=True)
            for number in range(2):
                grey = np.full((32, 32, 3), offset + 10 * label + number, np.uint8)
                Image.fromarray(grey).save(tmp_path / "tree" / part / name / f"{number:04}.png")
    return tmp_path / "tree"


def check_tiny(images):
    assert images.train_x.shape == images.test_x.shape == (20, 3, 32, 32)
    assert images.train_x.dtype == torch.uint8
    assert images.train_y.tolist() == [label for label in range(10) for _ in range(2)]
    assert images.test_x[:, 0, 0, 0].tolist() == [
        100 + 10 * label + number for label in range(10) for number in range(2)
    ]


def test_import_of_an_image_folder_and_of_a_tar_of_it(root, tree, tmp_path):
    cifar10.import_from(tree, root)
    images = datasets.load_data("cifar10", "real")
    check_tiny(images)
    assert images.source == "CIFAR-10, image folder of .png, only 20 + 20 images"
    shutil.make_archive(str(tmp_path / "inside"), "gztar", tmp_path, "tree")  # the tar has a folder above train/
    shutil.rmtree(root)
    cifar10.import_from(tmp_path / "inside.tar.gz", root)
    check_tiny(datasets.load_data("cifar10", "auto"))
    assert main(["data", "verify"]) == 0
    assert sorted(entry.name for entry in root.iterdir()) == ["cifar10"], "nothing temporary is left"


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_is_called_a_re_encoding(root, tree, ending):
    image = tree / "train" / "cat" / "0000.png"
    Image.open(image).save(image.with_suffix(ending), "jpeg")
    image.unlink()
    assert "JPEG re-encoding (lossy)" in cifar10.import_from(tree, root)


def test_the_official_archive_goes_through_torchvision(root, tmp_path, monkeypatch):
    folder = tmp_path / "official" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    sums = {}
    for names, in_each in ((CIFAR10.train_list, 4), (CIFAR10.test_list, 20)):
        for name, _ in names:
            batch = {
                "data": np.arange(in_each * 3072, dtype=np.uint8).reshape(in_each, 3072),
                "labels": [i % 10 for i in range(in_each)],
            }
            (folder / name).write_bytes(pickle.dumps(batch))
            sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(cifar10.CLASSES)}))
    meta = {**CIFAR10.meta, "md5": hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", meta)
    shutil.make_archive(str(tmp_path / "cifar-10-python"), "gztar", tmp_path / "official")
    for source in (folder, tmp_path / "official", tmp_path / "cifar-10-python.tar.gz"):
        shutil.rmtree(root, ignore_errors=True)
        assert cifar10.import_from(source, root) == "CIFAR-10, official archive"
        images = datasets.load_data("cifar10", "real")
        assert images.train_x.shape == (20, 3, 32, 32)
        assert images.train_x[0, 1, 0, 0] == 1024 % 256  # channel first: the second plane starts at 1024
        assert images.train_x[0, 0, :2, :2].tolist() == [[0, 1], [32, 33]], "then row by row"
        assert images.test_y.tolist() == [i % 10 for i in range(20)]
    (folder / "test_batch").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cifar-10-batches-py is damaged"):
        cifar10.import_from(folder, root)
    assert datasets.load_data("cifar10", "real").source == "CIFAR-10, official archive", "the old import is untouched"


def damage_missing_class(tree):
    shutil.rmtree(tree / "test" / "frog")


def damage_unknown_class(tree):
    (tree / "train" / "unicorn").mkdir()


def damage_no_test(tree):
    shutil.rmtree(tree / "test")


def damage_no_train(tree):
    shutil.rmtree(tree / "train")


def damage_size(tree):
    Image.new("RGB", (33, 32)).save(tree / "test" / "dog" / "0000.png")


def damage_image(tree):
    (tree / "test" / "dog" / "0000.png").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_missing_class, r"test/ lacks the classes \['frog'\]"),
        (damage_unknown_class, r"train/ lacks the classes \[\] and has the unknown ones \['unicorn'\]"),
        (damage_no_test, "test/ lacks the classes"),
        (damage_no_train, "neither cifar-10-batches-py/ nor train/<class>/ found"),
        (damage_size, "0000.png: 33x32 pixels, needed: 32x32"),
        (damage_image, "test/dog/0000.png cannot be read"),
    ],
)
def test_a_wrong_folder_is_named_and_nothing_is_left(root, tree, damage, named):
    damage(tree)
    with pytest.raises((ValueError, OSError), match=named):
        cifar10.import_from(tree, root)
    assert not list(root.glob("*"))
    assert not datasets.available("cifar10")


def test_a_cut_or_foreign_archive_and_a_missing_path_are_named(root, tree, tmp_path, capsys):
    shutil.make_archive(str(tmp_path / "whole"), "gztar", tree)
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.tar").write_text("hello")
    for name in ("cut.tar.gz", "text.tar"):
        with pytest.raises(ValueError, match=f"{name} is not a complete tar archive"):
            cifar10.import_from(tmp_path / name, root)
    assert main(["data", "import", "cifar10", str(tmp_path / "nothing")]) == 2
    assert "nothing does not exist" in capsys.readouterr().err


def test_an_archive_with_a_damaged_member_is_not_taken_for_one_that_ends_there(root, tree, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tree, ".")
    with tarfile.open(tmp_path / "images.tar") as tar:
        at = tar.getmembers()[-1].offset
    content = bytearray((tmp_path / "images.tar").read_bytes())
    (tmp_path / "no_end.tar").write_bytes(content[:at])
    content[at + 10] ^= 1
    (tmp_path / "damaged.tar").write_bytes(content)
    for name in ("no_end", "damaged"):
        with pytest.raises(ValueError, match=f"{name}.tar is not a complete tar archive: after .* there is no end"):
            cifar10.import_from(tmp_path / f"{name}.tar", root)


@pytest.mark.parametrize("kind", ["gztar", "bztar", "xztar"])
def test_no_damage_of_a_compressed_archive_is_a_traceback(root, tree, tmp_path, kind):
    whole = bytearray(Path(shutil.make_archive(str(tmp_path / "whole"), kind, tree)).read_bytes())
    for at in range(20, len(whole), max(len(whole) // 15, 1)):
        broken = whole.copy()
        broken[at] ^= 255
        (tmp_path / "broken").write_bytes(broken)
        with contextlib.suppress(ValueError):
            cifar10.import_from(tmp_path / "broken", root)


def test_a_tar_cannot_write_outside_its_folder(root, tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        info = tarfile.TarInfo("../../escaped.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"hi"))
    with pytest.raises(ValueError, match="not a complete tar archive"):
        cifar10.import_from(tmp_path / "evil.tar", root)
    assert not list(tmp_path.rglob("escaped.txt"))


def test_auto_falls_back_to_embedded_and_real_does_not(root):
    assert datasets.load_data("cifar10", "auto").source == "embedded handwritten digits (scikit-learn), not CIFAR-10"
    for call in (lambda: datasets.load_data("cifar10", "real"), lambda: embedded.client_update("late", "real")):
        with pytest.raises(FileNotFoundError, match="python -m cosquant_lite data"):
            call()
    with pytest.raises(ValueError, match="unknown data 'fake'; allowed: auto, real, embedded"):
        datasets.load_data("cifar10", "fake")


def test_embedded_update_is_a_whole_update_of_the_paper_s_network():
    shapes = {name: value.shape for name, value in cnn().state_dict().items()}
    for stage in embedded.STAGES:
        captured = embedded.client_update(stage)
        for part in (captured.update, captured.weights):
            assert {name: value.shape for name, value in part.items()} == shapes
            assert all(value.isfinite().all() and value.any() for value in part.values())
        assert "JPEG re-encoding" in captured.source
        assert captured.source.startswith("embedded client update")
    middle = embedded.client_update("middle")
    assert torch.equal(middle.peers[0], middle.update[middle.peer_layer].flatten())
    assert middle.peers.shape == (10, 18_432)
    with pytest.raises(ValueError, match="unknown stage 'first'; allowed: early, middle, late"):
        embedded.client_update("first")


def test_embedded_files_are_small_and_intact(capsys):
    assert sum(file.stat().st_size for file in datasets.EMBEDDED.glob("client_update.*")) <= 2_000_000
    assert main(["data", "verify"]) == 0
    assert "DAMAGED" not in capsys.readouterr().out


def test_verify_notices_damage_and_missing_files(root, tree, capsys):
    cifar10.import_from(tree, root)
    labels = root / "cifar10" / "test_y.npy"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x09")
    assert main(["data", "verify"]) == 1
    assert f"DAMAGED  {labels}" in capsys.readouterr().out
    labels.unlink()
    assert main(["data", "verify"]) == 1
    assert f"missing  {labels}" in capsys.readouterr().out
    (root / CIFAR10.base_folder).mkdir()
    assert main(["data", "verify"]) == 1
    assert f"DAMAGED  {root / CIFAR10.base_folder}" in capsys.readouterr().out


def test_without_the_embedded_files_nothing_passes(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checksums, "EMBEDDED", tmp_path / "nothing")
    assert main(["data", "verify"]) == 2
    assert "needs a checkout" in capsys.readouterr().err


def test_a_relative_data_folder_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COSQUANT_DATA", "mine")
    assert datasets.data_root() == tmp_path.resolve() / "mine"


def test_an_image_folder_is_refused_beside_the_official_archive(root, tree):
    (root / CIFAR10.base_folder).mkdir(parents=True)
    with pytest.raises(ValueError, match="would still be used; remove it first"):
        cifar10.import_from(tree, root)


def test_import_replaces_an_older_one(root, tree):
    cifar10.import_from(tree, root)
    (tree / "train" / "cat" / "0001.png").unlink()
    cifar10.import_from(tree, root)
    assert len(datasets.load_data("cifar10", "real").train_y) == 19
    assert sorted(entry.name for entry in root.iterdir()) == ["cifar10"]


def test_where_capture_cannot_write_is_said_before_it_trains(root, tree, tmp_path, monkeypatch):
    cifar10.import_from(tree, root)
    monkeypatch.setattr(federated, "rounds", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        capture.capture(tmp_path / "file" / "out")


def test_capture_stores_the_first_client_s_update_and_its_weights(root, tree, tmp_path, monkeypatch, capsys):
    cifar10.import_from(tree, root)
    config = dataclasses.replace(capture.CONFIG, rounds=3, clients=4, clients_per_round=2, epochs=1)
    monkeypatch.setattr(capture, "CONFIG", config)
    monkeypatch.setattr(capture, "ROUNDS", {1: "early", 2: "middle", 3: "late"})
    assert main(["data", "capture"]) == 0
    finished = list(federated.rounds(config, datasets.load_data("cifar10", "real")))
    for number, stage in enumerate(embedded.STAGES):
        captured = embedded.client_update(stage, "auto")
        assert captured.source.startswith("captured client update")
        for name, value in finished[number].updates[0].items():
            assert torch.equal(captured.update[name], value.half().float())
            assert torch.equal(captured.weights[name], finished[number].received[name].half().float())
    assert torch.equal(
        embedded.client_update("middle", "real").peers[1],
        finished[1].updates[1]["conv2.weight"].flatten().half().float(),
    )
    assert main(["data", "verify"]) == 0
    (root / "captured" / "client_update.npz").write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match=r"client_update\.npz is damaged"):
        embedded.client_update("late", "real")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("source.json", b"{}", r"source.json is damaged: it has no 'source'"),
        ("train_x.npy", None, r"train_x.npy is damaged"),
        ("SHA256SUMS", b"0123\n", r"line 1 of .*SHA256SUMS is damaged"),
    ],
)
def test_a_damaged_import_is_named(root, tree, capsys, file, content, words):
    cifar10.import_from(tree, root)
    path = root / "cifar10" / file
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    assert main(["data", "verify" if file == "SHA256SUMS" else "status"]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_digits_are_deterministic_and_split():
    first, second = embedded.digits(), embedded.digits()
    assert torch.equal(first.train_x, second.train_x)
    assert (len(first.train_y), len(first.test_y)) == (1500, 297)
    assert first.train_x.shape[1:] == (3, 32, 32)
    assert set(first.train_y.tolist()) == set(range(10))


def test_iid_deals_out_every_image_once():
    parts = partition.iid(103, 10, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(103))
    assert {len(part) for part in parts} == {10, 11}


def test_synthetic_inputs_have_the_moments_they_promise():
    gaussian, heavy = synthetic.gaussian(100_000, 0), synthetic.student_t3(100_000, 0)
    assert abs(gaussian.std() - 1) < 0.01
    assert abs(heavy.abs().median() - 0.7649) < 0.02  # the quartile of Student's t with 3 degrees of freedom
    assert heavy.abs().max() > 3 * gaussian.abs().max()
    assert synthetic.spike(100, 0, 5.0)[0] == 5
    assert torch.equal(synthetic.student_t3(10, 3), synthetic.student_t3(10, 3))


@pytest.mark.skipif(not SHARED_TAR.exists(), reason="the real CIFAR-10 (JPEG) tar is not beside this checkout")
def test_real_images_train_a_round_with_two_bits_up(root, tmp_path, capsys):
    """A part of the real tar, so that it takes seconds: 60 training and 10 test images a class."""
    with tarfile.open(SHARED_TAR) as whole, tarfile.open(tmp_path / "part.tar", "w") as part:
        for member in whole:
            words = member.name.removeprefix("./").split("/")
            if member.isfile() and int(words[-1].split(".")[0]) < {"train": 60, "test": 10}[words[-3]]:
                part.addfile(member, whole.extractfile(member))
    assert main(["data", "import", "cifar10", str(tmp_path / "part.tar")]) == 0
    assert (
        main(
            [
                "run",
                "--data",
                "real",
                "--rounds",
                "1",
                "--clients",
                "10",
                "--clients-per-round",
                "2",
                "--up",
                "cosine:2",
                "--runs",
                str(root / "runs"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "CIFAR-10, JPEG re-encoding (lossy), only 600 + 100 images" in printed
    length = wire.frame_bytes(initial_weights(cnn(), 0), 2)
    assert f"up {2 * length:,} B" in printed  # two clients


def test_verify_looks_at_what_was_captured_and_at_the_official_archive(root, capsys):
    (root / "captured").mkdir(parents=True)
    file = root / "captured" / "client_update.npz"
    file.write_bytes(b"whole")
    checksums.write_sums(root / "captured", [file.name])
    assert main(["data", "verify"]) == 0
    file.write_bytes(b"other")
    assert main(["data", "verify"]) == 1
    assert f"DAMAGED  {file}" in capsys.readouterr().out
    file.write_bytes(b"whole")
    (root / CIFAR10.base_folder).mkdir()
    assert main(["data", "verify"]) == 1
    assert f"DAMAGED  {root / CIFAR10.base_folder}" in capsys.readouterr().out


def test_an_archive_that_is_there_is_not_fetched_again(root, monkeypatch):
    root.mkdir()
    (root / CIFAR10.filename).write_bytes(b"")
    monkeypatch.setattr(cifar10, "fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ValueError, match="is not a complete tar archive"):
        cifar10.download(root)


def test_peers_are_of_the_middle_round():
    assert [embedded.client_update(stage).peers is None for stage in embedded.STAGES] == [True, False, True]


def test_an_update_that_lacks_an_array_is_damaged(root):
    (root / "captured").mkdir(parents=True)
    np.savez(root / "captured" / "client_update.npz", nothing=np.zeros(1))
    about = (datasets.EMBEDDED / "client_update.json").read_text("utf-8")
    (root / "captured" / "client_update.json").write_text(about)
    with pytest.raises(ValueError, match=r"client_update\.npz is damaged"):
        embedded.client_update("middle", "real")


def test_an_empty_data_variable_is_none(monkeypatch):
    monkeypatch.setenv("COSQUANT_DATA", "")
    assert datasets.data_root() == datasets.EMBEDDED


def test_images_stand_upright(root, tree):
    image = np.zeros((32, 32, 3), np.uint8)
    image[0], image[:, 0, 1] = 200, 90  # a bright first row, a green left edge
    Image.fromarray(image).save(tree / "train" / cifar10.CLASSES[0] / "0000.png")
    cifar10.import_from(tree, root)
    x = datasets.load_data("cifar10", "real").train_x[0]
    assert torch.equal(x, torch.from_numpy(image).permute(2, 0, 1))


def test_embedded_is_embedded_where_real_data_is_there(root, tree):
    cifar10.import_from(tree, root)
    assert datasets.load_data("cifar10", "embedded").source.startswith("embedded handwritten digits")
    assert datasets.load_data("cifar10", "auto").source.startswith("CIFAR-10")


def test_digits_use_the_whole_range_and_white_stays_white():
    from sklearn.datasets import load_digits

    images, raw = embedded.digits(), load_digits().images
    shown = torch.cat([images.train_x, images.test_x]).float()
    assert (shown.min(), shown.max()) == (0, 255)
    assert shown.mean() / 255 == pytest.approx(raw.mean() / 16, rel=0.01)


def test_the_rest_of_a_spike_has_norm_one():
    assert synthetic.spike(100_000, 0)[1:].norm() == pytest.approx(1, abs=0.02)

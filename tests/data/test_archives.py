"""Members of archives read like files, and archives that cannot be."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from mrcnn_tf.data import archives
from mrcnn_tf.data.archives import ArchiveMember, locate
from mrcnn_tf.data.coco import DataError
from mrcnn_tf.data.images import ImageError, encode_png, load_image

FILES = {"VOC/a.txt": b"one", "VOC/sub/b.txt": b"two" * 1000}


def write_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path, files=FILES, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(params=["zip", "tar"])
def member(request, tmp_path):
    return ArchiveMember({"zip": write_zip, "tar": write_tar}[request.param](tmp_path / f"set.{request.param}"), "VOC")


def test_members_are_read_like_files(member):
    assert member.is_dir()
    assert not member.is_file()
    assert (member / "sub").is_dir()
    assert (member / "sub/b.txt").is_file()
    assert (member / "sub" / "b.txt").read_bytes() == FILES["VOC/sub/b.txt"]
    assert (member / "a.txt").open("rb").read() == b"one"
    assert str(member / "a.txt").endswith("/VOC/a.txt")


def test_members_go_to_other_processes(member):
    assert pickle.loads(pickle.dumps(member / "a.txt")).read_bytes() == b"one"


@pytest.mark.parametrize("name", ["c.txt", "sub", "../a.txt", "/VOC/a.txt"])
def test_what_is_not_there(member, name):
    assert not (member / name).is_file()
    with pytest.raises(FileNotFoundError):
        (member / name).read_bytes()


def test_an_image_in_an_archive(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    archive = ArchiveMember(write_zip(tmp_path / "a.zip", {"a.png": encode_png(image), "b.png": b"nothing"}))
    np.testing.assert_array_equal(load_image(archive / "a.png"), image)
    with pytest.raises(ImageError, match=r"a\.zip/b\.png: not a readable image: of no kind that Pillow knows"):
        load_image(archive / "b.png")
    with pytest.raises(ImageError, match=r"a\.zip/c\.png: no such image file"):
        load_image(archive / "c.png")


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_truncated_zip(tmp_path, keep):
    path = write_zip(tmp_path / "a.zip", {"a": bytes(range(256))})
    path.write_bytes(path.read_bytes()[:keep] if keep else b"")
    with pytest.raises(DataError, match=r"a\.zip: not a readable archive: .*incomplete or damaged") as caught:
        (ArchiveMember(path) / "a").read_bytes()
    assert caught.value.kind == "broken file"


def test_a_truncated_tar(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a": b"x", "b": bytes(20000)})
    path.write_bytes(path.read_bytes()[:10000])
    with pytest.raises(DataError, match=r"a\.tar: not a readable archive: .*(ends within b|unexpected end)"):
        (ArchiveMember(path) / "a").read_bytes()


def test_a_compressed_tar_cannot_be_read_in_place(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", mode="w:gz")
    with pytest.raises(DataError, match=r"only \.zip and \.tar that is not compressed can be read in place, unpack others"):
        ArchiveMember(path, "VOC/a.txt").read_bytes()


def test_a_damaged_member(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a": np.random.default_rng(0).bytes(5000), "b": b"fine"})
    data = bytearray(path.read_bytes())
    data[1000:1100] = bytes(100)
    path.write_bytes(data)
    assert (ArchiveMember(path) / "b").read_bytes() == b"fine"
    with pytest.raises(OSError, match="damaged in the archive"):
        (ArchiveMember(path) / "a").read_bytes()
    with pytest.raises(ImageError, match="damaged in the archive"):
        load_image(ArchiveMember(path) / "a")


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_a_member_that_would_fill_the_memory(tmp_path, monkeypatch, write):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 999)
    with pytest.raises(OSError, match=r"b\.txt would have 3000 bytes unpacked"):
        ArchiveMember(write(tmp_path / "bomb"), "VOC/sub/b.txt").read_bytes()


def test_links_in_a_tar_lead_nowhere(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert not (ArchiveMember(path) / "link").is_file()


def test_empty_archives(tmp_path):
    for path in (write_zip(tmp_path / "a.zip", {}), write_tar(tmp_path / "a.tar", {})):
        assert not (ArchiveMember(path) / "a").is_file()
        assert not (ArchiveMember(path) / "a").is_dir()


def test_what_is_unpacked_comes_first(tmp_path):
    write_zip(tmp_path / "a.zip")
    assert locate(tmp_path, "VOC", "a.zip") == ArchiveMember(tmp_path / "a.zip", "VOC")
    assert locate(tmp_path, "VOC/a.txt", "b.zip", "a.zip") == ArchiveMember(tmp_path / "a.zip", "VOC/a.txt")
    (tmp_path / "VOC").mkdir()
    assert locate(tmp_path, "VOC", "a.zip") == tmp_path / "VOC"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected VOC there, or a\.zip or b\.zip"):
        locate(tmp_path, "VOC", "a.zip", "b.zip")
    write_zip(tmp_path / "a.zip")
    with pytest.raises(DataError, match=r"a\.zip: the archive has no COCO"):
        locate(tmp_path, "COCO", "a.zip")

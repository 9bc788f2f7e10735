"""The index of a tar: what the standard library reads of a whole one, and all that is whole of a damaged one."""

import io
import tarfile

import numpy as np
import pytest

from sharelock_ray.sources.tar import Damage, Member, members

BLOCK = 512


def tar_of(contents: dict[str, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def index(tar: bytes) -> list[Member | Damage]:
    return list(members(io.BytesIO(tar)))


def content(tar: bytes, member: Member | Damage) -> bytes:
    assert isinstance(member, Member)
    return tar[member.offset : member.offset + member.size]


class TestWholeTars:
    @pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_of_every_format_are_read_as_by_the_standard_library(self, kind: int) -> None:
        rng = np.random.default_rng(0)
        sizes = [0, 1, 511, 512, 513, 5000]
        names = [f"folder/{i}-{size}.jpg" for i, size in enumerate(sizes)]
        if kind != tarfile.USTAR_FORMAT:
            names = [f"{'ä' * 40 * i}{name}" for i, name in enumerate(names)]
        tar = tar_of({name: rng.bytes(size) for name, size in zip(names, sizes, strict=True)}, format=kind)
        with tarfile.open(fileobj=io.BytesIO(tar)) as reader:
            expected = [Member(m.name, "file", m.offset_data, m.size) for m in reader]
        assert index(tar) == expected
        assert [member.name for member in expected] == names

    def test_a_size_of_the_pax_format_goes_before_that_of_the_header(self) -> None:
        records = b"12 size=700\n"
        tar = header("pax", len(records), tarfile.XHDTYPE) + records.ljust(BLOCK, b"\0")
        tar += header("a", 5) + b"x" * 2 * BLOCK + bytes(2 * BLOCK)
        assert index(tar) == [Member("a", "file", 3 * BLOCK, 700)]

    def test_without_members_hold_none(self) -> None:
        assert index(tar_of({})) == []

    def test_links_devices_and_sparse_files_are_told_apart_from_files(self) -> None:
        types = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"V"]
        tar = b"".join(header("a", 0, kind) for kind in types) + header("b/", 0, tarfile.DIRTYPE) + bytes(2 * BLOCK)
        assert [member.kind for member in index(tar)] == ["other"] * len(types) + ["folder"]

    def test_a_sparse_file_of_the_pax_format_is_no_plain_file(self) -> None:
        records = b"22 GNU.sparse.major=1\n25 GNU.sparse.name=a.jpg\n"
        tar = header("pax", len(records), tarfile.XHDTYPE) + records.ljust(BLOCK, b"\0")
        tar += header("GNUSparseFile/a.jpg", 5) + b"x" * BLOCK + bytes(2 * BLOCK)
        assert index(tar) == [Member("a.jpg", "other", 3 * BLOCK, 5)]


class TestDamage:
    TAR = tar_of({f"{i}": bytes([65 + i]) * 1000 for i in range(6)}, format=tarfile.USTAR_FORMAT)
    START = tuple(3 * BLOCK * i for i in range(7))
    """Where each member's header begins, and the end mark."""

    @pytest.mark.parametrize("first", range(6))
    @pytest.mark.parametrize("count", [1, 2])
    @pytest.mark.parametrize("filling", [b"\xff", b"\0", b"ustar"], ids=["ones", "zeros", "magic"])
    def test_of_headers_is_one_stretch_and_the_others_are_whole(self, first: int, count: int, filling: bytes) -> None:
        last = min(first + count, 6)
        tar = bytearray(self.TAR)
        for i in range(first, last):
            tar[self.START[i] : self.START[i] + BLOCK] = (filling * BLOCK)[:BLOCK]
        found = index(bytes(tar))
        good = [item for item in found if isinstance(item, Member)]
        assert [content(tar, member) for member in good] == [
            bytes([65 + i]) * 1000 for i in range(6) if not first <= i < last
        ]
        (bad,) = [item for item in found if isinstance(item, Damage)]
        # Behind the last member there is no header to go on at, only the end mark.
        assert (bad.start, bad.end) == (self.START[first], self.START[last] if last < 6 else len(tar))

    def test_of_many_megabytes_is_one_stretch(self) -> None:
        noise = np.random.default_rng(0).bytes(3 << 20)
        found = index(self.TAR[: self.START[2]] + noise + self.TAR[self.START[2] :])
        assert [type(item) for item in found] == [Member, Member, Damage, Member, Member, Member, Member]
        assert found[2].end - found[2].start == 3 << 20

    @pytest.mark.parametrize("end", [1, 100, 512, 1000, 1535, 1536, 1600, 2048, 9215, 9216, 9300])
    def test_a_cut_anywhere_leaves_the_whole_members_and_one_stretch(self, end: int) -> None:
        found = index(self.TAR[:end])
        whole = sum(start + BLOCK + 1000 <= end for start in self.START[:6])
        assert [type(item) for item in found] == [Member] * whole + [Damage]
        assert found[-1].end == end

    def test_a_size_beyond_the_tar_is_damage(self) -> None:
        tar = bytearray(self.TAR)
        tar[self.START[2] : self.START[2] + BLOCK] = header("2", 10**9)
        found = index(bytes(tar))
        assert [item.name if isinstance(item, Member) else "" for item in found] == ["0", "1", "", "3", "4", "5"]
        assert found[2].problem.startswith("'2' claims 1,000,000,000 bytes")

    def test_a_negative_size_is_damage(self) -> None:
        whole = bytearray(header("a", 0))
        whole[124:136] = b"\xff" * 12  # -1 in the base-256 notation of GNU tar.
        whole[148:156] = b" " * 8
        whole[148:156] = b"%06o\0 " % sum(whole)
        assert [type(item) for item in index(bytes(whole) + bytes(2 * BLOCK))] == [Damage]

    @pytest.mark.parametrize("size", [1 << 40, 2 << 20])
    def test_a_name_beyond_all_measure_is_not_read(self, size: int) -> None:
        found = index(header("././@LongLink", size, tarfile.GNUTYPE_LONGNAME) + self.TAR)
        assert [type(item) for item in found] == [Damage] + [Member] * 6
        assert "an extended header of" in found[0].problem

    @pytest.mark.parametrize("records", [b"nonsense", b"99999 path=a\n", b"5 a=b\n", b"15 size=twelve\n"])
    def test_an_extended_header_that_cannot_be_read_is_damage(self, records: bytes) -> None:
        extended = header("pax", len(records), tarfile.XHDTYPE) + records.ljust(BLOCK, b"\0")
        found = index(extended + self.TAR)
        assert isinstance(found[0], Damage)
        assert found[0].start == 0
        assert [item.name for item in found[-5:]] == list("12345")

    def test_an_extended_header_without_a_member_is_damage(self) -> None:
        found = index(header("././@LongLink", 5, tarfile.GNUTYPE_LONGNAME) + b"name\0".ljust(BLOCK, b"\0"))
        assert [(item.start, item.end) for item in found] == [(0, 2 * BLOCK)]

    def test_tars_one_behind_the_other_are_read_to_the_end_with_a_stretch_at_the_seam(self) -> None:
        found = index(self.TAR + self.TAR)
        assert [type(item) for item in found] == [Member] * 6 + [Damage] + [Member] * 6

    def test_a_chain_of_headers_is_read_once(self) -> None:
        """Each of these names belongs to the next; to follow the chain from every link would take hours."""
        link = header("././@LongLink", 0, tarfile.GNUTYPE_LONGNAME)
        assert [type(item) for item in index(link * 20_000)] == [Damage]

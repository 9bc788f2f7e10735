"""Products of matrices: the same numbers, faster where the processor has a faster way."""

import pytest
import torch

from sharelock_ray import onednn


@pytest.mark.parametrize(
    ("amd", "capability", "faster"), [(True, "AVX512", True), (False, "AVX512", False), (True, "AVX2", False)]
)
def test_it_is_faster_on_amd_processors_with_avx_512(
    amd: bool, capability: str, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "is_amd", lambda: amd)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert onednn.is_faster() == (faster and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize("faster", [True, False])
class TestProduct:
    @pytest.fixture(autouse=True)
    def processor(self, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onednn, "is_faster", lambda: faster)

    @pytest.mark.parametrize(("rows", "columns"), [(5, 3), (1, 1), (0, 3), (5, 0)])
    def test_is_that_of_double_precision(self, rows: int, columns: int) -> None:
        left, right = torch.randn(rows, 8), torch.randn(columns, 8)
        expected = (left.double() @ right.double().T).float()
        torch.testing.assert_close(onednn.product(left, right), expected, rtol=1e-5, atol=1e-6)

    def test_of_strided_matrices_too(self) -> None:
        left, right = torch.randn(8, 5).T, torch.randn(6, 8)[::2]
        torch.testing.assert_close(onednn.product(left, right), left @ right.T, rtol=1e-5, atol=1e-6)

    def test_other_types_are_multiplied_by_torch(self) -> None:
        left, right = torch.randn(5, 8).double(), torch.randn(3, 8).double()
        assert torch.equal(onednn.product(left, right), left @ right.T)

    def test_numbers_that_are_not_finite_stay_so(self) -> None:
        left = torch.ones(2, 8)
        left[0, 0] = torch.nan
        assert onednn.product(left, torch.ones(3, 8)).isnan().tolist() == [[True] * 3, [False] * 3]

import threading
from functools import partial
from itertools import chain

import pytest
import torch

from sana_wm_env.model.cores import run_together, shares

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_shares_are_all_rows_in_order_and_nearly_equal(threads, rows):
    parts = [list(range(rows))[part] for part in shares(rows, CPU)]
    assert list(chain(*parts)) == list(range(rows))
    assert len(parts) == min(rows, threads) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_other_devices_take_the_batch_whole():
    assert shares(8, torch.device("cuda")) == [slice(0, 8)]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_results_in_order_with_the_threads_shared_out(threads, calls):
    def call(n: int) -> tuple[int, int]:
        return n, torch.get_num_threads()

    found = run_together([partial(call, n) for n in range(calls)])
    assert found == [(n, threads // min(calls, threads)) for n in range(calls)]
    assert torch.get_num_threads() == threads


def test_nobody_else_s_threads_are_changed(threads):
    run_together([torch.get_num_threads] * 2)
    found = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [threads]


def test_an_error_reaches_the_caller(threads):
    with pytest.raises(ZeroDivisionError):
        run_together([lambda: 1, lambda: 1 / 0])
    assert run_together([lambda: 1, lambda: 2]) == [1, 2]

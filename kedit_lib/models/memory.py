"""Work in parts that fit into free memory."""

from collections.abc import Callable
from functools import cache
from itertools import accumulate

import psutil
import torch

from ..errors import KeditError

# Of torch's CPU allocator, which has no exception class.
CPU_SAYS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "std::bad_alloc")


def free_memory(device: torch.device) -> int:
    """Bytes that a computation on `device` can still take, those that torch holds in reserve there included."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return psutil.virtual_memory().available


@cache
def graph_memory(device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph whose `pool()` all others share; it lives on, since a pool ends with its last graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        torch.zeros(1, device=device)
    return graph


def ran_out(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on an accelerator or on the host."""
    on_cpu = isinstance(error, RuntimeError) and any(said in str(error) for said in CPU_SAYS)
    return on_cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def in_parts(work: Callable[[int, int], object], costs: list[float], budget: float, what: str) -> list:
    """The results of work(begin, end) for consecutive parts of len(costs) items. A part is as long as its costs fit the
    budget, one item at least; where memory runs out it is halved. KeditError when a single item does not fit."""
    found, begin = [], 0
    while begin < len(costs):
        end = begin + max(1, sum(cost <= budget for cost in accumulate(costs[begin:])))
        try:
            found.append(work(begin, end))
            begin = end
            continue
        except Exception as error:
            if not ran_out(error):
                raise
        # Here, after the handler, the failure's frames hold no tensor any more.
        if end - begin == 1:
            raise KeditError(f"{what}: one alone does not fit into memory; free some, or use a smaller model or dtype")
        budget = sum(costs[begin:end]) / 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found

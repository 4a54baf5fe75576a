"""When each job of a plan starts and ends on a number of GPUs, and the longest chain of jobs.

The graph is networkx's. The schedule is own code: neither networkx nor the standard library assigns
jobs to a limited number of workers.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

import networkx as nx

from passionsr.benchmark.job_graph import Job

# What uses `device`; the others take minutes on one CPU core at every scale.
ON_GPU = ("reference", "calibrate", "sensitivity", "infer", "score")


@dataclass(frozen=True)
class Schedule:
    """Start and end of every job in seconds; critical: labels of the longest chain, in order."""

    start: dict[str, float]
    end: dict[str, float]
    critical: list[str]

    @property
    def makespan(self) -> float:
        """End of the last job, s."""
        return max(self.end.values(), default=0.0)


def job_graph(jobs: Mapping[str, Job]) -> nx.DiGraph[str]:
    """One node per job, an edge from each job to every job that waits for it."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(jobs)
    graph.add_edges_from((need, job.label) for job in jobs.values() for need in job.needs)
    return graph


def time_behind(graph: nx.DiGraph[str], seconds: Mapping[str, float]) -> dict[str, float]:
    """Per job the seconds of the longest chain that starts with it, the job included."""
    behind: dict[str, float] = {}
    for label in reversed(list(nx.topological_sort(graph))):
        longest = max((behind[after] for after in graph.successors(label)), default=0.0)
        behind[label] = seconds[label] + longest
    return behind


def critical_path(graph: nx.DiGraph[str], seconds: Mapping[str, float]) -> list[str]:
    """Labels of the longest chain; networkx weighs edges, so each has the time of its first job."""
    end = "(end)"
    timed: nx.DiGraph[str] = nx.DiGraph()
    timed.add_weighted_edges_from((job, after, seconds[job]) for job, after in graph.edges)
    last = [job for job in graph if not graph.out_degree(job)]
    timed.add_weighted_edges_from((job, end, seconds[job]) for job in last)
    return nx.dag_longest_path(timed)[:-1]


def schedule(
    jobs: Mapping[str, Job],
    seconds: Mapping[str, float],
    gpus: int,
    memory: Mapping[str, int] | None = None,
    budget: int | None = None,
) -> Schedule:
    """List scheduling: a free GPU takes the ready job with the most time behind it.

    Jobs that run on the CPU start as soon as they are ready. A job that finds no memory waits, and
    one that asks for more than there is gets all of it, as in Snakemake.

    Args:
        jobs: label -> job.
        seconds: label -> time.
        gpus: how many jobs that run the model may run at once.
        memory: kind of job -> MB of one.
        budget: MB of all jobs that run at once; None: no limit.
    """
    room = float("inf") if budget is None else budget
    taken: dict[str, float] = {
        label: min((memory or {}).get(job.kind, 0), room) for label, job in jobs.items()
    }
    graph = job_graph(jobs)
    behind = time_behind(graph, seconds)
    waiting = TopologicalSorter({label: job.needs for label, job in jobs.items()})
    waiting.prepare()
    ready: list[str] = []
    start: dict[str, float] = {}
    end: dict[str, float] = {}
    running: list[tuple[float, str]] = []
    free, now = gpus, 0.0
    while waiting.is_active():
        ready = sorted([*ready, *waiting.get_ready()], key=lambda name: (-behind[name], name))
        for label in list(ready):
            on_gpu = jobs[label].kind in ON_GPU
            if (on_gpu and not free) or taken[label] > room:
                continue
            free -= on_gpu
            room -= taken[label]
            ready.remove(label)
            start[label] = now
            heapq.heappush(running, (now + seconds[label], label))
        now, done = heapq.heappop(running)
        end[done] = now
        free += jobs[done].kind in ON_GPU
        room += taken[done]
        waiting.done(done)
    return Schedule(start, end, critical_path(graph, seconds))

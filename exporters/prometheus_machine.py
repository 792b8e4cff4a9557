"""What Prometheus scrapes of the machine: where the time goes, the cards, the host, and the run's processes.

A card is told apart by ``gpu`` (its index in the driver's order) and ``uuid``. A value that the card or the system does
not tell has no sample: absent is not zero. Units are base units: seconds, bytes, watts, hertz, ratios from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lorawatch.records import AllocatorReading, Card, GpuReading, HostReading

Readings = Mapping[str, tuple[GpuReading | None, HostReading | None, AllocatorReading | None]]
"""By run: the last readings of the cards, of the host, and of torch's allocator."""

_CARD: dict[str, tuple[str, Callable[[Card], float | None]]] = {
    "lorawatch_gpu_memory_total_bytes": ("Memory of the card.", lambda card: card.memory_total),
    "lorawatch_gpu_memory_used_bytes": (
        "Memory in use, by all processes and the driver: the most since the reading before.",
        lambda card: card.memory_used,
    ),
    "lorawatch_gpu_memory_reserved_bytes": ("Memory that driver and firmware hold.", lambda card: card.memory_reserved),
    "lorawatch_gpu_own_memory_bytes": ("Memory that the run's own processes hold.", lambda card: card.own_memory),
    "lorawatch_gpu_utilization_ratio": ("Share of the time in which a kernel ran.", lambda card: card.utilization),
    "lorawatch_gpu_power_watts": ("Power drawn.", lambda card: card.power),
    "lorawatch_gpu_power_limit_watts": ("Power at which the card is capped.", lambda card: card.power_limit),
    "lorawatch_gpu_temperature_celsius": ("Temperature of the chip.", lambda card: card.temperature),
    "lorawatch_gpu_sm_clock_hertz": ("Clock of the multiprocessors.", lambda card: card.sm_clock),
    "lorawatch_gpu_sm_clock_max_hertz": ("Highest clock of the multiprocessors.", lambda card: card.max_sm_clock),
    "lorawatch_gpu_ecc_uncorrected_errors": (
        "Uncorrected memory errors since the driver was loaded.", lambda card: card.ecc_uncorrected,
    ),
    "lorawatch_gpu_ecc_corrected_errors": (
        "Corrected memory errors since the driver was loaded.", lambda card: card.ecc_corrected,
    ),
    "lorawatch_gpu_remapped_rows": ("Memory rows remapped over the card's life.", lambda card: card.remapped_rows),
    "lorawatch_gpu_pcie_generation": ("Generation of the PCIe link.", lambda card: card.pcie_generation),
    "lorawatch_gpu_pcie_width_lanes": ("Lanes of the PCIe link.", lambda card: card.pcie_width),
    "lorawatch_gpu_lost": ("Whether the card has fallen off the bus.", lambda card: float(card.lost)),
}  # fmt: skip
_ALLOCATOR: dict[str, tuple[str, Callable[[AllocatorReading], float]]] = {
    "lorawatch_allocator_allocated_bytes": ("Bytes in tensors, by torch's allocator.", lambda one: one.allocated),
    "lorawatch_allocator_peak_allocated_bytes": (
        "The most bytes in tensors since the process began.", lambda one: one.peak_allocated,
    ),
    "lorawatch_allocator_reserved_bytes": ("Bytes that torch's allocator holds.", lambda one: one.reserved),
}  # fmt: skip
_HOST: dict[str, tuple[str, Callable[[HostReading], float | None]]] = {
    "lorawatch_host_memory_total_bytes": ("Memory that may be used.", lambda host: host.memory_total),
    "lorawatch_host_memory_available_bytes": (
        "Memory that can be had without swapping: the least since the reading before.",
        lambda host: host.memory_available,
    ),
    "lorawatch_host_swap_in_bytes_per_second": ("Rate of swapping in.", lambda host: host.swap_in_rate),
    "lorawatch_host_major_faults_per_second": ("Page faults that read from storage.", lambda h: h.major_faults_rate),
    "lorawatch_host_cpus": ("Processors that may be used, by affinity and quota.", lambda host: host.cpus),
    "lorawatch_host_cpus_in_use": ("Processors in use, of those that may be used.", lambda host: host.cpu),
    "lorawatch_host_load1": ("Load average over a minute.", lambda host: host.load),
    "lorawatch_disk_total_bytes": ("Size of the file system that checkpoints go to.", lambda host: host.disk_total),
    "lorawatch_disk_free_bytes": ("Free on the file system that checkpoints go to.", lambda host: host.disk_free),
    "lorawatch_host_disk_read_bytes_per_second": ("Read from all disks.", lambda host: host.disk_read_rate),
    "lorawatch_host_disk_write_bytes_per_second": ("Written to all disks.", lambda host: host.disk_write_rate),
    "lorawatch_host_receive_bytes_per_second": ("From the network, loopback left out.", lambda h: h.receive_rate),
    "lorawatch_host_transmit_bytes_per_second": ("To the network, loopback left out.", lambda host: host.send_rate),
    "lorawatch_checkpoint_bytes": ("Size of the newest checkpoint.", lambda host: host.checkpoint_bytes),
    "lorawatch_trainer_alive": (
        "Whether the trainer's process is there.", lambda host: None if host.alive is None else float(host.alive),
    ),
    "lorawatch_trainer_idle_seconds": ("Time since the trainer's last sign of progress.", lambda host: host.idle),
}  # fmt: skip


def machine_metrics(readings: Readings, phase_seconds: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    """The metric families of the machine.

    Args:
        readings: The last readings, by run.
        phase_seconds: Seconds by what they were spent in, by run.
    """
    phases = CounterMetricFamily(
        "lorawatch_phase_seconds", "Time of training by what it was spent in, as far as steps were timed from inside.",
        labels=["run", "phase"],
    )  # fmt: skip
    for run, spent in phase_seconds.items():
        for phase, seconds in spent.items():
            phases.add_metric([run, phase], seconds)
    if phases.samples:
        yield phases
    yield from _cards({run: gpu.cards for run, (gpu, _, _) in readings.items() if gpu is not None})
    yield from _allocators({run: one for run, (_, _, one) in readings.items() if one is not None})
    yield from _hosts({run: host for run, (_, host, _) in readings.items() if host is not None})


def _cards(cards: Mapping[str, Sequence[Card]]) -> Iterator[Metric]:
    for name, (text, value_of) in _CARD.items():
        family = GaugeMetricFamily(name, text, labels=["run", "gpu", "uuid"])
        for run, several in cards.items():
            for card in several:
                value = value_of(card)
                if value is not None:
                    family.add_metric([run, str(card.index), card.uuid], value)
        if family.samples:
            yield family
    throttled = GaugeMetricFamily(
        "lorawatch_gpu_throttled_ratio", "Share of the looks at which something held the clocks down, by what.",
        labels=["run", "gpu", "uuid", "reason"],
    )  # fmt: skip
    for run, several in cards.items():
        for card in several:
            for reason, share in (card.throttled or {}).items():
                throttled.add_metric([run, str(card.index), card.uuid, reason], share)
    if throttled.samples:
        yield throttled


def _allocators(allocators: Mapping[str, AllocatorReading]) -> Iterator[Metric]:
    for name, (text, value_of) in _ALLOCATOR.items():
        gauge = GaugeMetricFamily(name, text, labels=["run", "device"])
        for run, one in allocators.items():
            gauge.add_metric([run, str(one.device)], value_of(one))
        if gauge.samples:
            yield gauge
    retries = CounterMetricFamily(
        "lorawatch_allocator_retries", "Times that the allocator gave cached memory back and tried again.",
        labels=["run", "device"],
    )  # fmt: skip
    ooms = CounterMetricFamily("lorawatch_allocator_ooms", "Out-of-memory errors.", labels=["run", "device"])
    for run, one in allocators.items():
        retries.add_metric([run, str(one.device)], one.alloc_retries)
        ooms.add_metric([run, str(one.device)], one.ooms)
    yield from (family for family in (retries, ooms) if family.samples)


def _hosts(hosts: Mapping[str, HostReading]) -> Iterator[Metric]:
    for name, (text, value_of) in _HOST.items():
        family = GaugeMetricFamily(name, text, labels=["run"])
        for run, host in hosts.items():
            value = value_of(host)
            if value is not None:
                family.add_metric([run], value)
        if family.samples:
            yield family
    resident = GaugeMetricFamily(
        "lorawatch_process_resident_memory_bytes", "Resident memory of the run's processes, by role.",
        labels=["run", "role"],
    )  # fmt: skip
    cpus = GaugeMetricFamily(
        "lorawatch_process_cpus_in_use", "Processors in use by the run's processes, by role.", labels=["run", "role"]
    )
    count = GaugeMetricFamily("lorawatch_processes", "Processes of the run, by role.", labels=["run", "role"])
    for run, host in hosts.items():
        for role in ("trainer", "rank", "worker"):
            processes = [one for one in host.processes if one.role == role]
            if processes:
                count.add_metric([run, role], len(processes))
                resident.add_metric([run, role], sum(one.rss or 0 for one in processes))
                cpus.add_metric([run, role], sum(one.cpu or 0.0 for one in processes))
    yield from (family for family in (count, resident, cpus) if family.samples)

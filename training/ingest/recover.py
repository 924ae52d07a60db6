"""What is readable of a damaged MCAP bag, written to a new one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from training.ingest.bag import Bag
from vpr_kd_ros.errors import DataError
from vpr_kd_ros.recording import BagWriter


@dataclass(frozen=True)
class Recovery:
    """What came of a damaged bag.

    Attributes:
        path: folder of the new bag.
        written: topic to count of messages.
        lost_chunks: chunks with a wrong checksum or content.
        lost_bytes: of the ends of files, after the place where they stop making sense.
        expected: messages that the bag had by its metadata, None where it has none.
        left_out: topic to count of messages that are not CDR, which a bag of ROS 2 cannot hold.
    """

    path: Path
    written: Counter[str]
    lost_chunks: int
    lost_bytes: int
    expected: int | None
    left_out: Counter[str]

    def __str__(self) -> str:
        total = sum(self.written.values())
        lines = [f"{self.path}: {total} messages recovered"]
        lines += [f"  {count:>8} {topic}" for topic, count in sorted(self.written.items())]
        lost = []
        if self.lost_chunks:
            lost.append(f"{self.lost_chunks} chunk(s) with a wrong checksum")
        if self.lost_bytes:
            lost.append(f"a truncated tail of {self.lost_bytes} bytes")
        if self.expected is not None and self.expected > total:
            lost.append(f"{self.expected - total} of {self.expected} messages")
        lines.append("  lost: " + (", ".join(lost) or "nothing; the bag is whole"))
        lines += [f"  NOTICE {topic}: {count} messages are not CDR; left out" for topic, count in self.left_out.items()]
        return "\n".join(lines)


def recover(path: str | Path, out: str | Path) -> Recovery:
    """Write every readable message of the MCAP bag to the new bag ``out``; topics keep types, definitions and QoS.

    Raises:
        DataError: nothing can be read, the bag is of another storage (an empty or half-written sqlite3 bag is named as
            such), or the new bag cannot be written.
    """
    with Bag(path) as bag:
        files = bag.mcap_files
        if not files:
            kinds = ", ".join(sorted({file.suffix for file in bag.files}))
            raise DataError(
                f"{path}: holds {bag.message_count} readable messages in {kinds} files, and only MCAP has checksums by "
                "which damage is told from data; ingest reads it as it is, ros2 bag convert makes an MCAP of it"
            )
        left_out: Counter[str] = Counter()
        progress = tqdm(total=bag.message_count, desc="recover", unit="msg", leave=False)
        with BagWriter(out, wait_for_disk=True) as writer, progress as bar:
            for file in files:
                kept = {name: topic for name, topic in file.topics.items() if topic.encoding == "cdr"}
                for name, topic in kept.items():
                    writer.declare_topic(name, topic.type_name, topic.qos, topic.definition)
                for name, stamp_ns, data in file.messages():
                    bar.update()
                    if name in kept:
                        writer.write(name, kept[name].type_name, stamp_ns, data)
                    else:
                        left_out[name] += 1
        return Recovery(
            path=Path(out),
            written=+writer.written,
            lost_chunks=sum(file.damage.chunks for file in files),
            lost_bytes=sum(f.path.stat().st_size - f.damage.cut_at for f in files if f.damage.cut_at is not None),
            expected=bag.expected_count,
            left_out=left_out,
        )

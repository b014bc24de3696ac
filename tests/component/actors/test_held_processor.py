"""A processor that is held to fewer instructions, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def test_a_processor_held_to_avx2_takes_float32() -> None:
    """The switches of oneDNN and ATen make any x86 processor one without instructions for bfloat16."""
    code = (
        "import dataclasses, json; from dvpo_ray.planning.node_facts import measure_node as m; f = m();"
        "print(json.dumps(dataclasses.asdict(f) | {'bfloat16': f.multiplies_bfloat16}))"
    )
    held = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=held, capture_output=True, text=True, check=True, timeout=120)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["is_gpu"] or (facts["bfloat16_speed"] < 1 and not facts["bfloat16"]), facts

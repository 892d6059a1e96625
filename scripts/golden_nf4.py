#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/nf4/: what bitsandbytes makes of two tensors, blocks of 64, on the CPU.

Run it with `make golden`. golden.json, written beside the tensors, lists every tensor and the conventions.
"""

import json
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes import functional
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent.parent / "crates/testkit/fixtures/nf4"
BLOCK = 64


def tensors():
    generator = torch.Generator().manual_seed(7)
    # Rows of different scale, as the layers of a model have them; one block is all zeros.
    plain = torch.randn(16, 128, generator=generator) * torch.logspace(-3, 1, 16).unsqueeze(1)
    plain[3, :BLOCK] = 0.0
    # 5 x 77 values: the last block has 1 of its 64, and blocks do not end where rows do.
    ragged = torch.randn(5, 77, generator=generator) * 0.05
    return {"plain": plain, "ragged": ragged}


def main():
    torch.set_num_threads(1)
    values = {}
    for name, weight in tensors().items():
        codes, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=BLOCK)
        values[f"{name}.values"] = weight
        values[f"{name}.codes"] = codes
        values[f"{name}.absmax"] = state.absmax
        values[f"{name}.dequantized"] = functional.dequantize_4bit(codes, state)
        values["code_book"] = state.code
        codes, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=BLOCK, compress_statistics=True)
        assert torch.equal(codes, values[f"{name}.codes"])
        values[f"{name}.nested.absmax_codes"] = state.absmax
        values[f"{name}.nested.absmax"] = state.state2.absmax
        values[f"{name}.nested.offset"] = state.offset.reshape(1)
        values[f"{name}.nested.dequantized"] = functional.dequantize_4bit(codes, state)
        values["nested.code_book"] = state.state2.code
        assert state.state2.blocksize == 256
    FOLDER.mkdir(parents=True, exist_ok=True)
    values = {name: value.contiguous().clone() for name, value in values.items()}
    path = FOLDER / "golden.safetensors"
    save_file(values, path, metadata={"format": "pt"})
    path.chmod(0o644)
    about = {
        "made_by": "scripts/golden_nf4.py",
        "versions": {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__},
        "conventions": {
            "block": f"{BLOCK} values in row-major order, across rows; the last block may be short",
            "NAME.codes": "[bytes, 1], two values a byte, the first in the high nibble",
            "NAME.absmax": "[blocks]; value = code_book[code] * absmax[block]",
            "NAME.nested.*": "double quantization: absmax[i] is about "
            "nested.code_book[absmax_codes[i]] * nested.absmax[i / 256] + offset",
        },
        "tensors": {
            name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
            for name, value in sorted(values.items())
        },
    }
    (FOLDER / "golden.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    error = (values["plain.dequantized"] - values["plain.values"]).norm() / values["plain.values"].norm()
    print(f"{FOLDER}: relative error {error:.4f}")


if __name__ == "__main__":
    main()

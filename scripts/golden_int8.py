#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/int8/: symmetric 8-bit integers, a scale for each row, by PyTorch's own quantizer.

The codes are also compared with bitsandbytes' (LLM.int8), where no value lies half-way between two codes: there it
multiplies by a rounded reciprocal. Run it with `make golden`.
"""

import json
from pathlib import Path

import torch
from bitsandbytes import functional
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent.parent / "crates/testkit/fixtures/int8"


def tensors():
    generator = torch.Generator().manual_seed(8)
    # Rows of different scale, as the layers of a model have them; one row is all zeros.
    plain = torch.randn(16, 128, generator=generator) * torch.logspace(-3, 1, 16).unsqueeze(1)
    plain[3] = 0.0
    # The scale is 1: every value but the last lies half-way between two codes.
    ties = torch.arange(-126.5, 127.0, 1.0)
    ties = torch.cat([ties, torch.tensor([127.0])]).unsqueeze(0)
    return {"plain": plain, "ragged": torch.randn(5, 77, generator=generator) * 0.05, "ties": ties}


def main():
    torch.set_num_threads(1)
    values = {}
    for name, weight in tensors().items():
        scales = weight.abs().amax(dim=1) / 127
        # A scale of 0 is refused; the codes of a row of zeros are 0 at any.
        usable = torch.where(scales > 0, scales, torch.ones_like(scales))
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        quantized = torch.quantize_per_channel(weight, usable, zeros, axis=0, dtype=torch.qint8)
        values[f"{name}.values"] = weight
        values[f"{name}.codes"] = quantized.int_repr()
        values[f"{name}.scales"] = scales
        values[f"{name}.dequantized"] = quantized.dequantize()
        if name != "ties":
            codes, absmax, _ = functional.int8_vectorwise_quant(weight)
            assert torch.equal(codes, values[f"{name}.codes"]) and torch.equal(absmax / 127, scales)
    FOLDER.mkdir(parents=True, exist_ok=True)
    values = {name: value.contiguous().clone() for name, value in values.items()}
    path = FOLDER / "golden.safetensors"
    save_file(values, path, metadata={"format": "pt"})
    path.chmod(0o644)
    about = {
        "made_by": "scripts/golden_int8.py",
        "versions": {"torch": torch.__version__},
        "conventions": {
            "NAME.codes": "-127 to 127, to nearest even",
            "NAME.scales": "[rows], the largest absolute value of the row / 127; value = code * scale",
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

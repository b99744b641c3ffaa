"""Mend what keeps Bochs from running programs for AMX under Linux.

    python bochs.py FOLDER      the folder cpu/ of its sources

Its products of tiles take signed bytes for unsigned ones. And it lacks "extended feature disable", without which Linux
gives nobody the tiles. Intel SDM, volume 1, 13.14: while bit 18 of IA32_XFD is set, an instruction on tile data raises
#NM and sets that bit in IA32_XFD_ERR, and the tiles are not saved. Linux sets it until a process first uses its tiles.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

STATE = "extern Bit64u xfd, xfd_err;\n"
NOT_AVAILABLE = "if (xfd >> 18 & 1) { xfd_err = 1 << 18; exception(BX_NM_EXCEPTION, 0); }\n"
REGISTERS = ("MSR_IA32_XFD", "xfd"), ("MSR_IA32_XFD_ERROR", "xfd_err")

CHANGES = [
    # (file, what to look for, as a regular expression, what to write in its place)
    ("proc_ctrl.cc", r"(?=void BX_CPU_C::handleAvxModeChange)", "Bit64u xfd, xfd_err;\n\n"),
    (
        "proc_ctrl.cc",
        r"(XTILECFG_MASK \| BX_XCR0_XTILEDATA_MASK\)\) != 0)(?=\)\s+clear_amx_ok)",
        r"\1 || (xfd >> 18 & 1)",
    ),
    ("proc_ctrl.cc", r"(?s)(BxNoAMX\(bxInstruction_c \*i\)\n.*?)(?=BX_ASSERT)", r"\1" + NOT_AVAILABLE),
    ("decoder/ia_opcodes.def", r"(?m)^(.*BX_IA_(?:LDTILECFG|STTILECFG|TILERELEASE),.*)BX_PREPARE_AMX", r"\g<1>0"),
    ("cpuid.cc", r"(leaf->eax \|= \(1<<3\);\n)(?=\s+// EBX\[31:00\] - The size)", r"\1leaf->eax |= 1 << 4;\n"),
    ("cpuid.cc", r"(leaf->ecx = xsave_restore\[subfunction\]\.attr)", r"\1 | (subfunction == 18 ? 4 : 0)"),
    ("xsave.cc", r"(?=#define LOG_THIS)", STATE),
    ("xsave.cc", r"return xinuse;", "return xinuse & ~Bit32u(xfd);"),
    ("msr.cc", r"(?=#define LOG_THIS)", STATE),
    ("avx/amx.cc", r"Bit32s\(([xy]byte\[\d\])\)", r"Bit32s(Bit8s(\1))"),
    *(
        row
        for name, value in REGISTERS
        for row in (
            (
                "msr.cc",
                r"(?=msr_desc\[BX_MSR_XSS\] = )",
                f'msr_desc[BX_{name}] = new MSR_Descriptor("{name}", BX_ISA_AMX);\n',
            ),
            ("msr.cc", r"(?=case BX_MSR_XSS:\s+val64)", f"case BX_{name}: val64 = {value}; break;\n"),
            (
                "msr.cc",
                r"(?=case BX_MSR_XSS: // reserved)",
                f"case BX_{name}: {value} = val_64; handleAvxModeChange(); break;\n",
            ),
        )
    ),
]


def main() -> None:
    """Change the files, or end where one of them is not as expected."""
    for name, pattern, text in CHANGES:
        file = Path(sys.argv[1]) / name
        changed, count = re.subn(pattern, text, file.read_text("latin-1"))
        if not count:
            sys.exit(f"{file}: there is no {pattern}")
        file.write_text(changed, "latin-1")


if __name__ == "__main__":
    main()

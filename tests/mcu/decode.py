"""Which RV32EC instructions a stretch of machine code holds; emulators run more than the chips do."""

_BRANCHES = {0, 1, 4, 5, 6, 7}
_LOADS = {0, 1, 2, 4, 5}
_STORES = {0, 1, 2}
_ECALL, _EBREAK = 0x00000073, 0x00100073


class IllegalInstructionError(Exception):
    """The code holds an instruction that the chip lacks."""


def count_instructions(code: bytes, address: int = 0, *, multiplier: bool = False) -> int:
    """Counts the instructions in `code` and refuses those that RV32EC lacks.

    Args:
        code: Whole instructions of 2 or 4 bytes, little-endian.
        address: Where `code` stands, for the error's text.
        multiplier: The chip multiplies (Zmmul: mul, mulh, mulhsu, mulhu). No chip here divides.

    Returns:
        The number of instructions.

    Raises:
        IllegalInstructionError: A multiplication without multiplier, a division, a register above x15, or an
            encoding outside RV32E and its compressed form.
    """
    count = offset = 0
    while offset < len(code):
        half = int.from_bytes(code[offset : offset + 2], "little")
        size = 4 if half & 3 == 3 else 2
        word = int.from_bytes(code[offset : offset + size], "little")
        if offset + size > len(code):
            raise IllegalInstructionError(f"at {address + offset:#x}: the code ends within an instruction")
        problem = _full(word, multiplier) if size == 4 else _compressed(word)
        if problem:
            raise IllegalInstructionError(f"at {address + offset:#x}: {word:#0{2 + 2 * size}x}: {problem}")
        offset += size
        count += 1
    return count


def _high(*registers: int) -> str | None:
    """Names the first register that RV32E lacks."""
    for register in registers:
        if register > 15:
            return f"uses x{register}; RV32E ends at x15"
    return None


def _full(word: int, multiplier: bool) -> str | None:
    """Says what is wrong with a 4-byte instruction, or None."""
    opcode, funct3, funct7 = word & 0x7F, word >> 12 & 7, word >> 25
    rd, rs1, rs2 = word >> 7 & 31, word >> 15 & 31, word >> 20 & 31
    unknown = "no RV32EC instruction"
    match opcode:
        case 0x37 | 0x17 | 0x6F:  # lui, auipc, jal
            return _high(rd)
        case 0x67:  # jalr
            return _high(rd, rs1) if funct3 == 0 else unknown
        case 0x63:
            return _high(rs1, rs2) if funct3 in _BRANCHES else unknown
        case 0x03:
            return _high(rd, rs1) if funct3 in _LOADS else unknown
        case 0x23:
            return _high(rs1, rs2) if funct3 in _STORES else unknown
        case 0x13:  # shifts by an immediate hold their kind in funct7
            legal = funct3 not in (1, 5) or funct7 == 0 or (funct3 == 5 and funct7 == 0x20)
            return _high(rd, rs1) if legal else unknown
        case 0x33:
            if funct7 == 1 and funct3 >= 4:
                return "division; the chip has no divider"
            if funct7 == 1 and not multiplier:
                return "multiplication; the chip has no multiplier"
            legal = funct7 in (0, 1) or (funct7 == 0x20 and funct3 in (0, 5))
            return _high(rd, rs1, rs2) if legal else unknown
        case 0x0F:  # fence
            return None if word & 0xF00FFF80 == 0 else unknown
        case 0x73:
            return None if word in (_ECALL, _EBREAK) else unknown
        case _:
            return unknown


def _compressed(half: int) -> str | None:
    """Says what is wrong with a 2-byte instruction, or None."""
    funct3, bit12 = half >> 13, half >> 12 & 1
    rd, rs2 = half >> 7 & 31, half >> 2 & 31
    unknown = "no RV32EC instruction"
    match half & 3, funct3:
        case 0, 0:  # c.addi4spn; the rest of quadrant 0 names only x8 to x15
            return None if half >> 5 else unknown
        case 0, 2 | 6:  # c.lw, c.sw
            return None
        case 1, 0 | 2:  # c.addi, c.li
            return _high(rd)
        case 1, 3:  # c.lui, c.addi16sp
            return _high(rd) if bit12 or rs2 else unknown
        case 1, 4:  # c.srli, c.srai (by 1 to 31), c.andi, c.sub, c.xor, c.or, c.and on x8 to x15
            kind = half >> 10 & 3
            legal = kind == 2 or (not bit12 and (kind == 3 or rs2))
            return None if legal else unknown
        case 1, 1 | 5 | 6 | 7:  # c.jal, c.j, c.beqz, c.bnez
            return None
        case 2, 0:  # c.slli
            return _high(rd) if not bit12 and rs2 else unknown
        case 2, 2:  # c.lwsp
            return _high(rd) if rd else unknown
        case 2, 4:  # c.jr, c.mv, c.ebreak, c.jalr, c.add
            return _high(rd, rs2) if bit12 or rd or rs2 else unknown
        case 2, 6:  # c.swsp
            return _high(rs2)
        case _:
            return unknown

"""The microcontroller harness catches what it promises to catch."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from . import example
from .decode import IllegalInstructionError, count_instructions
from .rv32ec import CH32V003, BuildError, Chip, ChipOverflowError, Firmware, MachineError, build, run

MULTIPLIES = "return input[0] * input[1];"

# One program that misbehaves as its input demands.
MISBEHAVIOUR = """
#include "bad.h"
int32_t bad_arena[1];
void *memset(void *, int, unsigned);
int spin(int);
extern int8_t __static_end[];
__asm__(".text\\n.globl spin\\nspin: addi a0, a0, -1\\nbnez a0, spin\\nret\\n");
static int frame(int size) {
    volatile int8_t data[size];
    data[0] = 1;
    return data[0];
}
int bad_predict(const int8_t *input) {
    static volatile uint32_t ram_end = 0x20000800, flash = 0x100, outside = 0x20001000;
    static volatile uint32_t code[1] = {0x80828082};
    switch (input[0]) {
    case 1: return *(volatile int32_t *)ram_end;
    case 2: *(volatile int8_t *)ram_end = 1; break;
    case 3: return *(volatile int16_t *)(ram_end - 1);
    case 4: *(volatile int8_t *)flash = 1; break;
    case 5: return *(volatile int32_t *)outside;
    case 6: return *(volatile int32_t *)(flash + 2);
    case 7: return frame(2020);
    case 8: ((void (*)(void))(uintptr_t)code)(); break;
    case 9: for (;;) flash = flash;
    case 10: __asm__ volatile("ebreak"); break;
    case 11: __asm__ volatile(".word 0x02b50533" ::: "a0"); break; /* mul a0, a0, a1 */
    case 12: __asm__ volatile(".half 0x882a"); break;              /* mv x16, a0 */
    case 13: memset(__static_end, 7, 1900); break;
    case 20: return frame(200);
    case 21: return spin(1);
    case 22: return spin(1001);
    }
    return 0;
}
"""


def network(folder: Path, body: str, name: str = "net", inputs: int = 4) -> Path:
    """Writes a network whose predict function has the given body (or file, if it holds an #include)."""
    folder.mkdir(parents=True, exist_ok=True)
    upper = name.upper()
    (folder / f"{name}.h").write_text(
        f"#include <stdint.h>\n#define {upper}_INPUT_SIZE {inputs}\n#define {upper}_OUTPUT_SIZE 1\n"
        f"#define {upper}_INPUT_OFFSET 0\nextern int32_t {name}_arena[1];\n"
        f"#define {upper}_INPUT ((int8_t *){name}_arena)\nint {name}_predict(const int8_t *input);\n"
    )
    if "#include" not in body:
        head = f'#include "{name}.h"\nint32_t {name}_arena[1];\n'
        body = f"{head}int {name}_predict(const int8_t *input) {{ (void)input; {body} }}\n"
    (folder / f"{name}.c").write_text(body)
    return folder


def predictor(folder: Path, body: str, *, chip: Chip = CH32V003, opt: str = "-Os") -> Firmware:
    """Builds a network that is one function body."""
    return build(network(folder / "net", body), "net", folder / "out", opt, chip=chip, entry="predict")


def images(count: int) -> tuple[np.ndarray, list[bytes]]:
    """Random inputs of the example, as codes and as bytes; the first two are the extremes."""
    codes = np.random.default_rng(1).integers(-128, 128, (count, example.INPUTS))
    codes[0], codes[1] = -128, 127
    return codes, [row.astype(np.int8).tobytes() for row in codes]


@pytest.mark.usefixtures("toolchain")
@pytest.mark.parametrize("opt", ["-Os", "-O2"])
def test_example_computes_the_reference(tmp_path: Path, opt: str) -> None:
    codes, data = images(40)
    folder = example.write(tmp_path / "tiny")
    firmware = build(folder, "tiny", tmp_path / "run", opt)
    result = run(firmware, data)
    expected = example.reference(codes)
    assert np.array_equal(result.outputs, expected)
    assert result.classes == expected.argmax(1).tolist()
    assert firmware.libgcc == ()
    assert firmware.input_bytes == example.INPUTS
    assert firmware.static_bytes == 4 * example.OUTPUTS + 4 + example.HIDDEN + example.INPUTS  # outputs, class, arena
    assert firmware.flash_bytes == len(firmware.image) > sum(w.size for w in example.weights())
    assert 0 < result.stack_bytes <= 128
    assert result.ram_bytes == firmware.static_bytes + result.stack_bytes

    product = build(folder, "tiny", tmp_path / "predict", opt, entry="predict")
    alone = run(product, data)
    assert alone.classes == result.classes
    assert alone.outputs == [()] * len(data)
    assert product.static_bytes == 4 + example.HIDDEN + example.INPUTS


@pytest.mark.usefixtures("toolchain")
def test_instruction_counts_are_exact(tmp_path: Path) -> None:
    """Blocks counted at once and instructions counted one by one give the same sum."""
    from unicorn import unicorn_const

    from .emulator import _Machine

    _, data = images(2)
    firmware = build(example.write(tmp_path / "tiny"), "tiny", tmp_path / "out")
    counted = run(firmware, data).instructions
    machine = _Machine(firmware, 10**6)
    machine.start()
    steps = [0]

    def on_instruction(*_: object) -> None:
        steps[0] += 1

    machine._core.hook_add(unicorn_const.UC_HOOK_CODE, on_instruction)
    stepped = []
    for image in data:
        steps[0] = 0
        machine.infer(image)
        stepped.append(steps[0])
    assert stepped == counted


@pytest.fixture(scope="module")
def bad(toolchain: None, tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    """The program that misbehaves."""
    folder = tmp_path_factory.mktemp("bad")
    return build(network(folder / "bad", MISBEHAVIOUR, "bad", 1), "bad", folder / "out", entry="predict")


def test_misbehaviour_is_caught(bad: Firmware) -> None:
    expected = {
        1: "access of 4 bytes at 0x20000800, past the memory's end",
        2: "access of 1 bytes at 0x20000800, past the memory's end",
        3: "access of 2 bytes at 0x200007ff, past the memory's end",
        4: "write to flash: 1 bytes at 0x100",
        5: "access outside memory: 4 bytes at 0x20001000",
        6: "unaligned access of 4 bytes at 0x102",
        7: "the stack runs into static data",
        8: "code fetched from RAM",
        9: "no result after 20000 instructions",
        10: "the core stopped",
        11: "multiplication; the chip has no multiplier",
        12: "uses x16",
        13: "the stack has used all",
    }
    for kind, message in expected.items():
        with pytest.raises(MachineError, match=re.escape(message)):
            run(bad, [bytes([kind])], max_instructions=20000)
    for kind in (1, 2, 3, 4, 5, 8, 11, 12):  # also when accesses are no longer watched one by one
        with pytest.raises(MachineError):
            run(bad, [b"\0", bytes([kind])], max_instructions=20000)


def test_misbehaviour_is_judged_only_when_reached(bad: Firmware) -> None:
    assert run(bad, [b"\0", b"\0"]).classes == [0, 0]


def test_stack_is_measured(bad: Firmware) -> None:
    small, large = run(bad, [b"\0"]), run(bad, [b"\0", bytes([20]), b"\0"])
    assert 200 <= large.stack_bytes - small.stack_bytes + 16 <= 260
    assert large.ram_bytes - small.ram_bytes == large.stack_bytes - small.stack_bytes


def test_loop_is_counted_by_hand(bad: Firmware) -> None:
    """`spin` executes addi and bnez once for each count."""
    once, many = run(bad, [bytes([21]), bytes([22])]).instructions
    assert many - once - 2 * 1000 in (-1, 0, 1)  # the two calls may load their argument in one instruction or two


def test_wrong_image_size(bad: Firmware) -> None:
    with pytest.raises(ValueError, match="image 1 has 2 bytes; the network takes 1"):
        run(bad, [b"\0", b"\0\0"])


@pytest.mark.usefixtures("toolchain")
def test_multiplier(tmp_path: Path) -> None:
    with_mul = replace(CH32V003, march="rv32emc")
    firmware = predictor(tmp_path / "mul", MULTIPLIES, chip=with_mul)
    with pytest.raises(MachineError, match="multiplication; the chip has no multiplier"):
        run(firmware, [b"\3\5\0\0"])
    chip = replace(with_mul, multiplier=True)
    assert run(replace(firmware, chip=chip), [b"\3\5\0\0"]).classes == [15]
    divides = predictor(tmp_path / "div", "return input[0] / input[1];", chip=chip)
    with pytest.raises(MachineError, match="division; the chip has no divider"):
        run(divides, [b"\6\3\0\0"])


@pytest.mark.usefixtures("toolchain")
def test_libgcc_is_named_when_needed(tmp_path: Path) -> None:
    firmware = predictor(tmp_path, MULTIPLIES)
    assert firmware.libgcc == ("__mulsi3",)
    assert run(firmware, [b"\3\xfb\0\0"]).classes == [-15]


@pytest.mark.usefixtures("toolchain")
def test_overflow_is_given_in_bytes(tmp_path: Path) -> None:
    def body(flash: int, ram: int) -> str:
        return (
            f"static const int8_t table[{flash}] = {{1}}; static volatile int8_t buffer[{ram}];"
            "buffer[0] = input[0]; return table[(uint8_t)input[1]] + buffer[0];"
        )

    fits = predictor(tmp_path / "fits", body(8000, 1000))
    flash, ram = fits.flash_bytes, fits.static_bytes + 256
    with pytest.raises(ChipOverflowError, match="overflows the CH32V003: FLASH by ") as caught:
        predictor(tmp_path / "flash", body(20000, 1000))
    assert caught.value.overflow == {"FLASH": flash + 12000 - 16384}
    with pytest.raises(ChipOverflowError) as caught:
        predictor(tmp_path / "ram", body(8000, 2400))
    assert caught.value.overflow == {"RAM": ram + 1400 - 2048}
    with pytest.raises(ChipOverflowError) as caught:
        build(tmp_path / "fits" / "net", "net", tmp_path / "stack", entry="predict", stack=1500)
    assert caught.value.overflow == {"RAM": ram - 256 + 1500 - 2048}


@pytest.mark.usefixtures("toolchain")
def test_initialized_data_and_memory_functions(tmp_path: Path) -> None:
    body = """
    #include "net.h"
    int32_t net_arena[1];
    void *memset(void *, int, unsigned);
    void *memcpy(void *, const void *, unsigned);
    void *memmove(void *, const void *, unsigned);
    static volatile int32_t calls = 40, zero;
    int net_predict(const int8_t *input) {
        int8_t x[12];
        memset(x, 1, 12);
        memcpy(x, input, 4);           /* a b c d 1 1 ... */
        memmove(x + 1, x, 4);          /* a a b c d 1 ... */
        memmove(x + 6, x + 7, 5);
        calls = calls + 1;
        zero = zero + 1;
        return x[0] + 2 * x[1] + 4 * x[2] + 8 * x[3] + 16 * x[4] + 32 * x[5] + 64 * x[6] + 1000 * calls - 1000 * zero;
    }"""
    firmware = predictor(tmp_path, body)
    assert firmware.libgcc == ()
    a, b, c, d = 3, -5, 7, 11
    expected = a + 2 * a + 4 * b + 8 * c + 16 * d + 32 + 64 + 40000
    assert run(firmware, [np.array([a, b, c, d], np.int8).tobytes()] * 2).classes == [expected] * 2


@pytest.mark.usefixtures("toolchain")
def test_build_errors_are_clear(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="expected ';'"):
        predictor(tmp_path / "syntax", "return 0")
    with pytest.raises(BuildError, match="undefined reference to `elsewhere'"):
        predictor(tmp_path / "link", "int elsewhere(void); return elsewhere();")
    with pytest.raises(BuildError, match="nowhere-gcc not found: install the package gcc-nowhere"):
        predictor(tmp_path / "tool", "return 0;", chip=replace(CH32V003, tool_prefix="nowhere-", package="gcc-nowhere"))


def disassemble(code: bytes, folder: Path) -> list[str]:
    """Names each instruction of `code` with its operands, as binutils reads RV32."""
    file = folder / "code.bin"
    file.write_bytes(code)
    machine = ("-D", "-b", "binary", "-m", "riscv:rv32", "-M", "numeric,no-aliases")
    text = subprocess.run([CH32V003.tool("objdump"), *machine, file], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^ *[0-9a-f]+:\t[0-9a-f]+ *\t(.*)$", text, re.MULTILINE)


def allowed(text: str) -> bool:
    """Says from the disassembly whether RV32EC has the instruction."""
    full = """lui auipc jal jalr beq bne blt bge bltu bgeu lb lh lw lbu lhu sb sh sw addi slti sltiu xori ori andi
        slli srli srai add sub sll slt sltu xor srl sra or and fence pause ecall ebreak"""
    short = """addi4spn lw sw nop addi jal li addi16sp lui srli srai andi sub xor or and j beqz bnez slli lwsp jr mv
        ebreak jalr add swsp"""
    known = {*full.split(), *(f"c.{name}" for name in short.split())}
    high_register = re.search(r"\bx(1[6-9]|2\d|3[01])\b", text)
    zero_step = text == "c.addi16sp\tx2,0"  # reserved
    long_shift = re.match(r"(c\.)?s(ll|rl|ra)i\s.*,0x[23].$", text)
    return text.split()[0] in known and not (high_register or long_shift or zero_step)


def accepted(code: bytes) -> bool:
    """Says whether the decoder takes an instruction."""
    try:
        return count_instructions(code) == 1
    except IllegalInstructionError:
        return False


@pytest.mark.usefixtures("toolchain")
def test_decoder_agrees_with_binutils(tmp_path: Path) -> None:
    """All 2-byte encodings, and 4-byte ones of every opcode and function."""
    short = [half.to_bytes(2, "little") for half in range(1 << 16) if half & 3 != 3]
    rng = np.random.default_rng(2)
    full = []
    for opcode in range(3, 128, 4):
        if opcode & 0x1F == 0x1F:  # longer than 4 bytes
            continue
        for funct3 in range(8):
            for funct7 in (0, 1, 0x20, *rng.integers(0, 128, 5).tolist()):
                rd, rs1, rs2 = rng.integers(0, rng.choice([16, 32]), 3).tolist()
                word = funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode
                full.append(word.to_bytes(4, "little"))
    full += [word.to_bytes(4, "little") for word in (0x00000073, 0x00100073, 0x0FF0000F, 0x30200073)]
    for codes in (short, full):
        texts = disassemble(b"".join(codes), tmp_path)
        assert len(texts) == len(codes)
        wrong = [
            (code[::-1].hex(), text) for code, text in zip(codes, texts, strict=True) if accepted(code) != allowed(text)
        ]
        assert not wrong


def test_decoder_counts() -> None:
    assert count_instructions(bytes.fromhex("0145 13050500 8280")) == 3
    with pytest.raises(IllegalInstructionError, match=r"at 0x42: 0x02b50533: multiplication"):
        count_instructions(bytes.fromhex("0145 3305b502"), 0x40)
    with pytest.raises(IllegalInstructionError, match="ends within an instruction"):
        count_instructions(bytes.fromhex("1305"))
    assert count_instructions(bytes.fromhex("3305b502"), multiplier=True) == 1

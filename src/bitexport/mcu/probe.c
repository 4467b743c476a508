/* Measures a network in an emulator: for each image the outputs, the class and the time, at the end the stack.
 *
 * `bitlab measure` builds it. RISC-V and Arm read the file `images` and write the file `results` by semihosting; on AVR
 * the images are part of the program (images.h), and the results leave through the serial port as hexadecimal bytes.
 */
#include <stdint.h>

#include BIT_NETWORK_HEADER

#define PAINT 0x5a
#define DEPTH BIT_NETWORK_PAINT /* bytes of stack that are watched */

static int32_t output[BIT_NETWORK_OUTPUT_SIZE];
static int32_t class;
static uint8_t *stack_top;
static uint8_t *stack_bottom;

#if defined(__AVR__)
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/pgmspace.h>
#include <avr/sleep.h>

#include "images.h"

static void send(uint8_t digit) {
    while (!(UCSR0A & (1 << UDRE0))) {
    }
    UDR0 = (uint8_t)(digit < 10 ? '0' + digit : 'a' + digit - 10);
}

static void begin(void) {
    UCSR0B = 1 << TXEN0;
    TCCR1B = 5; /* counts 1024 cycles at a time */
}

static int next(int8_t *image, int again) {
    static uint16_t index;
    index += !again;
    if (index > IMAGES) {
        return 0;
    }
    memcpy_P(image, images[index - 1], BIT_NETWORK_INPUT_SIZE);
    return 1;
}

static void emit(const void *data, uint16_t size) {
    for (const uint8_t *byte = data; size != 0; size--, byte++) {
        send(*byte >> 4);
        send(*byte & 15);
    }
}

static uint32_t now(void) { return TCNT1; }
static uint32_t between(uint32_t start, uint32_t end) { return (uint32_t)(uint16_t)(end - start) << 10; }
static uint8_t *stack(void) { return (uint8_t *)SP; }

static void end(void) {
    while (!(UCSR0A & (1 << UDRE0))) {
    }
    UDR0 = '\n';
    cli();
    sleep_enable();
    sleep_cpu(); /* with interrupts off: the emulator ends */
}

#else
#include "semihost.h"

static intptr_t images, results;

static void begin(void) {
    images = semihost_open("images", 6, 0);
    results = semihost_open("results", 7, 1);
#if defined(__arm__)
    *(volatile uint32_t *)0xe000e014 = 0xffffff; /* SysTick */
    *(volatile uint32_t *)0xe000e010 = 5;
#endif
}

static int next(int8_t *image, int again) {
    static int8_t copy[BIT_NETWORK_INPUT_SIZE];
    if (!again && !semihost_read(images, copy, BIT_NETWORK_INPUT_SIZE)) {
        return 0;
    }
    for (uint32_t i = 0; i < BIT_NETWORK_INPUT_SIZE; i++) {
        image[i] = copy[i];
    }
    return 1;
}

static void emit(const void *data, uint16_t size) { semihost_write(results, data, size); }
static void end(void) { semihost_exit(); }

#if defined(__riscv)
static uint32_t now(void) {
    register uint32_t cycles __asm__("a0");
    __asm__ volatile(".word 0xb0002573" : "=r"(cycles)); /* csrr a0, mcycle */
    return cycles;
}
static uint32_t between(uint32_t start, uint32_t end) { return end - start; }
static uint8_t *stack(void) {
    uint8_t *pointer;
    __asm__ volatile("mv %0, sp" : "=r"(pointer));
    return pointer;
}
#else
static uint32_t now(void) { return *(volatile uint32_t *)0xe000e018; }
static uint32_t between(uint32_t start, uint32_t end) { return (start - end) & 0xffffff; }
static uint8_t *stack(void) {
    uint8_t *pointer;
    __asm__ volatile("mov %0, sp" : "=r"(pointer));
    return pointer;
}
#endif
#endif

static void __attribute__((noinline)) infer(void) { class = BIT_NETWORK_PREDICT(BIT_NETWORK_INPUT); }

int main(void) {
    begin();
    stack_top = stack();
    stack_bottom = stack_top - DEPTH;
    for (volatile uint8_t *byte = stack_bottom; byte < stack_top - 8; byte++) {
        *byte = PAINT;
    }
    while (next(BIT_NETWORK_INPUT, 0)) {
        const uint32_t start = now();
        infer();
        const uint32_t ticks = between(start, now());
        next(BIT_NETWORK_INPUT, 1);
        BIT_NETWORK_RUN(BIT_NETWORK_INPUT, output);
        emit(output, sizeof output);
        emit(&class, sizeof class);
        emit(&ticks, sizeof ticks);
    }
    while (*stack_bottom == PAINT) {
        stack_bottom++;
    }
    const uint32_t deepest = (uint32_t)(stack_top - stack_bottom);
    emit(&deepest, sizeof deepest);
    end();
    return 0;
}

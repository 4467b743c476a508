/* Measures a network in an emulator: for each image the outputs, the class and the time, at the end the stack.
 *
 * `bitlab measure` builds it. RISC-V and Arm read the file `images` and write the file `results` by semihosting; on AVR
 * the images are part of the program (images.h), and the results leave through the serial port as hexadecimal bytes.
 */
#include <stdint.h>

#include BIT_NETWORK_HEADER

#define PAINT 0x5a
#define DEPTH BIT_NETWORK_PAINT                             /* bytes of stack that are watched */
#define INLINE static inline __attribute__((always_inline)) /* no stack of its own */

static int32_t output[BIT_NETWORK_OUTPUT_SIZE];
static int32_t class;
static uint8_t *stack_top;
static uint8_t *stack_bottom;
static volatile uint32_t laps; /* of a counter that is narrower than 32 bits: an interrupt counts them */

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
    TIMSK1 = 1 << TOIE1;
}

ISR(TIMER1_OVF_vect) { laps++; }

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

#define LAP_BITS 16
#define TICK_BITS 10 /* cycles of a tick */
static uint32_t now(void) { return TCNT1; }
static uint32_t position(uint32_t time) { return time; }
static uint32_t count_laps(void) { return laps; }
static void watch(void) { sei(); }
static void rest(void) { cli(); }
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
    *(volatile uint32_t *)0xe000e010 = 7;
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
#define LAP_BITS 32
static uint32_t position(uint32_t time) { return time; }
static uint32_t count_laps(void) {
    register uint32_t cycles __asm__("a0");
    __asm__ volatile(".word 0xb8002573" : "=r"(cycles)); /* csrr a0, mcycleh */
    return cycles;
}
static void watch(void) {}
static void rest(void) {}
static uint8_t *stack(void) {
    uint8_t *pointer;
    __asm__ volatile("mv %0, sp" : "=r"(pointer));
    return pointer;
}
#else
static uint32_t now(void) { return *(volatile uint32_t *)0xe000e018; }
#define LAP_BITS 24
static uint32_t position(uint32_t time) { return 0xffffff - time; }
static uint32_t count_laps(void) { return laps; }
static void watch(void) { __asm__ volatile("cpsie i" ::: "memory"); }
static void rest(void) { __asm__ volatile("cpsid i" ::: "memory"); }

/* The rest of the vectors, behind the two of the start-up. */
static void end_lap(void) { laps++; }
__attribute__((section(".vectors"), used)) static void (*const vectors[14])(void) = {[13] = end_lap};

static uint8_t *stack(void) {
    uint8_t *pointer;
    __asm__ volatile("mov %0, sp" : "=r"(pointer));
    return pointer;
}
#endif
#endif

#ifndef TICK_BITS
#define TICK_BITS 0
#endif

static void __attribute__((noinline)) infer(void) { class = BIT_NETWORK_PREDICT(BIT_NETWORK_INPUT); }

/* What the counter shows, and its laps before. */
INLINE uint32_t read_laps(uint32_t *time) {
    uint32_t before;
    uint32_t after = count_laps();
    do {
        before = after;
        *time = position(now());
        for (volatile uint8_t i = 0; i < 16; i++) { /* an interrupt that waits is served meanwhile */
        }
        after = count_laps();
    } while (before != after);
    return after;
}

/* Runs the network and returns how long that took: between two readings of the counter and nothing else. Readings
 * shortly before and behind tell in which laps these were, since a counter that shows less has begun another one. */
INLINE uint64_t time_inference(void) {
    uint32_t early;
    uint32_t late;
    watch();
    const uint32_t first = read_laps(&early);
    const uint32_t start = now();
    infer();
    const uint32_t end = now();
    const uint32_t last = read_laps(&late);
    rest();
    const uint64_t begun = ((uint64_t)(first + (position(start) < early)) << LAP_BITS) + position(start);
    const uint64_t ended = ((uint64_t)(last - (position(end) > late)) << LAP_BITS) + position(end);
    return (ended - begun) << TICK_BITS;
}

INLINE void paint_stack(void) {
    for (volatile uint8_t *byte = stack_bottom; byte < stack_top - 8; byte++) {
        *byte = PAINT;
    }
}

/* The bytes of stack that have been used since it was painted. */
INLINE uint32_t used_stack(void) {
    const uint8_t *byte = stack_bottom;
    while (*byte == PAINT) {
        byte++;
    }
    return (uint32_t)(stack_top - byte);
}

int main(void) {
    uint32_t deepest = 0;
    rest();
    begin();
    stack_top = stack();
    stack_bottom = stack_top - DEPTH;
    while (next(BIT_NETWORK_INPUT, 0)) {
        const uint32_t before = laps;
        paint_stack();
        const uint64_t ticks = time_inference();
        if (laps != before) { /* what interrupts left on the stack is not the network's */
            next(BIT_NETWORK_INPUT, 1);
            paint_stack();
            infer();
        }
        next(BIT_NETWORK_INPUT, 1);
        BIT_NETWORK_RUN(BIT_NETWORK_INPUT, output);
        const uint32_t used = used_stack();
        deepest = used > deepest ? used : deepest;
        emit(output, sizeof output);
        emit(&class, sizeof class);
        emit(&ticks, sizeof ticks);
    }
    emit(&deepest, sizeof deepest);
    end();
    return 0;
}

/* Reads images from the terminal and prints the class of each: semihosting on RISC-V and Arm, the serial port on AVR.
 *
 * Built by the Makefile; defines as for main.c.
 */
#include <stdint.h>

#include BIT_NETWORK_HEADER

#if defined(__AVR__)
#include <avr/io.h>

static intptr_t open_input(void) {
    UCSR0A = 1 << U2X0;
    UBRR0 = 16; /* 115200 baud at 16 MHz, 2 % fast */
    UCSR0B |= 1 << RXEN0;
    return 0;
}

static intptr_t open_output(void) {
    UCSR0B |= 1 << TXEN0;
    return 0;
}

static int receive(intptr_t in, int8_t *image) {
    (void)in;
    for (uint16_t i = 0; i < BIT_NETWORK_INPUT_SIZE; i++) {
        while (!(UCSR0A & (1 << RXC0))) {
        }
        image[i] = (int8_t)UDR0;
    }
    return 1;
}

static void print(intptr_t out, char text) {
    (void)out;
    while (!(UCSR0A & (1 << UDRE0))) {
    }
    UDR0 = (uint8_t)text;
}

static void end(void) {}

#else
#include "semihost.h"

static intptr_t open_input(void) { return semihost_open("", 0, 0); }
static intptr_t open_output(void) { return semihost_open("", 0, 1); }
static int receive(intptr_t in, int8_t *image) { return semihost_read(in, image, BIT_NETWORK_INPUT_SIZE); }
static void print(intptr_t out, char text) { semihost_write(out, &text, 1); }
static void end(void) { semihost_exit(); }
#endif

static void print_number(intptr_t out, int number) {
    if (number >= 10) {
        print_number(out, number / 10);
    }
    print(out, (char)('0' + number % 10));
}

/* No static memory beside the network's: it fits where the smallest program does. */
int main(void) {
    const intptr_t in = open_input();
    const intptr_t out = open_output();
    while (receive(in, BIT_NETWORK_INPUT)) {
        print_number(out, BIT_NETWORK_PREDICT(BIT_NETWORK_INPUT));
        print(out, '\n');
    }
    end();
    return 0;
}

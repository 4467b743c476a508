/* Reads images from the terminal and prints the class of each: semihosting on RISC-V and Arm, the serial port on AVR.
 *
 * Built by the Makefile; defines as for main.c.
 */
#include <stdint.h>

#include BIT_NETWORK_HEADER

#if defined(__AVR__)
#include <avr/io.h>

static void begin(void) {
    UBRR0 = 8; /* 115200 baud at 16 MHz */
    UCSR0B = 1 << RXEN0 | 1 << TXEN0;
}

static int receive(int8_t *image) {
    for (uint16_t i = 0; i < BIT_NETWORK_INPUT_SIZE; i++) {
        while (!(UCSR0A & (1 << RXC0))) {
        }
        image[i] = (int8_t)UDR0;
    }
    return 1;
}

static void print(char text) {
    while (!(UCSR0A & (1 << UDRE0))) {
    }
    UDR0 = (uint8_t)text;
}

static void end(void) {}

#else
#include "semihost.h"

static intptr_t in, out;

static void begin(void) {
    in = semihost_open("", 0, 0);
    out = semihost_open("", 0, 1);
}

static int receive(int8_t *image) { return semihost_read(in, image, BIT_NETWORK_INPUT_SIZE); }
static void print(char text) { semihost_write(out, &text, 1); }
static void end(void) { semihost_exit(); }
#endif

static void print_number(int number) {
    if (number >= 10) {
        print_number(number / 10);
    }
    print((char)('0' + number % 10));
}

int main(void) {
    begin();
    while (receive(BIT_NETWORK_INPUT)) {
        print_number(BIT_NETWORK_PREDICT(BIT_NETWORK_INPUT));
        print('\n');
    }
    end();
    return 0;
}

/* Semihosting: a debugger or an emulator opens, reads and writes files and ends the program. */
#ifndef SEMIHOST_H
#define SEMIHOST_H

#include <stdint.h>

enum { SEMIHOST_OPEN = 1, SEMIHOST_WRITE = 5, SEMIHOST_READ = 6, SEMIHOST_EXIT = 24 };

static inline intptr_t semihost(intptr_t operation, const void *arguments) {
#if defined(__riscv)
    register intptr_t result __asm__("a0") = operation;
    register const void *parameter __asm__("a1") = arguments;
    __asm__ volatile(".option push\n .option norvc\n .balign 16\n slli zero, zero, 0x1f\n ebreak\n srai zero, zero, 7\n"
                     ".option pop"
                     : "+r"(result)
                     : "r"(parameter)
                     : "memory");
#else
    register intptr_t result __asm__("r0") = operation;
    register const void *parameter __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(result) : "r"(parameter) : "memory");
#endif
    return result;
}

/* Opens a file by its name ("" is the terminal), to read or to write bytes. */
static inline intptr_t semihost_open(const char *name, uintptr_t length, int write) {
    const uintptr_t arguments[] = {(uintptr_t)(length ? name : ":tt"), write ? 5 : 1, length ? length : 3};
    return semihost(SEMIHOST_OPEN, arguments);
}

/* Returns whether all bytes have been read. */
static inline int semihost_read(intptr_t file, void *data, uintptr_t size) {
    const uintptr_t arguments[] = {(uintptr_t)file, (uintptr_t)data, size};
    return semihost(SEMIHOST_READ, arguments) == 0;
}

static inline void semihost_write(intptr_t file, const void *data, uintptr_t size) {
    const uintptr_t arguments[] = {(uintptr_t)file, (uintptr_t)data, size};
    semihost(SEMIHOST_WRITE, arguments);
}

static inline void semihost_exit(void) { semihost(SEMIHOST_EXIT, (const void *)0x20026); }

#endif

/* Start-up of a Cortex-M: vectors, .data, .bss, main. Followed by what a compiler may call. */
#include <stddef.h>
#include <stdint.h>

extern uint32_t __data_start[], __data_end[], __data_load[], __bss_start[], __bss_end[], __stack_top[];
int main(void);
void reset(void);
void network_wait(void);

__attribute__((section(".vectors"), used)) static void *const vectors[] = {(void *)__stack_top, (void *)reset};

void reset(void) {
    const uint32_t *from = __data_load;
    for (uint32_t *to = __data_start; to != __data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = __bss_start; to != __bss_end; to++) {
        *to = 0;
    }
    main();
    for (;;) {
    }
}

/* Stops for the debugger, which reads the last result, writes the next input and goes on. */
void network_wait(void) { __asm__ volatile("bkpt 0"); }

void *memset(void *to, int value, size_t n) {
    for (volatile uint8_t *byte = to; n != 0; n--) {
        *byte++ = (uint8_t)value;
    }
    return to;
}

void *memcpy(void *to, const void *from, size_t n) {
    const uint8_t *source = from;
    for (volatile uint8_t *byte = to; n != 0; n--) {
        *byte++ = *source++;
    }
    return to;
}

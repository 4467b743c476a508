/* The smallest program around a network: waits, classifies what lies in the network's input, waits again.
 *
 * A debugger, an emulator or your own code (read a sensor in the place of network_wait) writes the input to
 * NAME_INPUT. The build names the exported network: -DBIT_NETWORK_HEADER='"digits.h"' -DBIT_NETWORK_RUN=digits_run
 * -DBIT_NETWORK_PREDICT=digits_predict -DBIT_NETWORK_INPUT=DIGITS_INPUT -DBIT_NETWORK_OUTPUT_SIZE=DIGITS_OUTPUT_SIZE.
 * With -DBIT_NETWORK_PREDICT_ONLY the program is what a product needs, the class alone, and network_output is left out.
 */
#include <stdint.h>

#include BIT_NETWORK_HEADER

#if defined(__AVR__)
static void network_wait(void) { __asm__ volatile("break"); }
#else
void network_wait(void); /* in the start-up */
#endif

int32_t network_class;

#ifdef BIT_NETWORK_PREDICT_ONLY

static void infer(void) { network_class = BIT_NETWORK_PREDICT(BIT_NETWORK_INPUT); }

#else

int32_t network_output[BIT_NETWORK_OUTPUT_SIZE];

static void infer(void) {
    int32_t best = 0;
    BIT_NETWORK_RUN(BIT_NETWORK_INPUT, network_output);
    for (int32_t i = 1; i < BIT_NETWORK_OUTPUT_SIZE; i++) {
        if (network_output[i] > network_output[best]) {
            best = i; /* the first of equals, as NAME_predict */
        }
    }
    network_class = best;
}

#endif

int main(void) {
    for (;;) {
        network_wait();
        infer();
    }
}

/* Classifies images handed over in RAM by a debugger or an emulator.
 *
 * The build names the exported network: -DNETWORK_HEADER='"digits.h"' -DNETWORK_RUN=digits_run
 * -DNETWORK_PREDICT=digits_predict -DNETWORK_INPUT_SIZE=DIGITS_INPUT_SIZE -DNETWORK_OUTPUT_SIZE=DIGITS_OUTPUT_SIZE.
 * With -DNETWORK_PREDICT_ONLY the program is what a product needs, the class alone, and network_output is left out.
 */
#include <stdint.h>

#include NETWORK_HEADER

void network_wait(void); /* startup.S */

int8_t network_input[NETWORK_INPUT_SIZE];
int32_t network_class;

#ifdef NETWORK_PREDICT_ONLY

static void infer(void) { network_class = NETWORK_PREDICT(network_input); }

#else

int32_t network_output[NETWORK_OUTPUT_SIZE];

static void infer(void) {
    int32_t best = 0;
    NETWORK_RUN(network_input, network_output);
    for (int32_t i = 1; i < NETWORK_OUTPUT_SIZE; i++) {
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

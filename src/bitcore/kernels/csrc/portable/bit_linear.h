/* C interface of the shared library: y[rows][outputs] = x[rows][inputs] times packed weights [outputs][row_bytes].
 *
 * `format` numbers the formats in the order of BIT_FORMATS. Returns 0, or 1 for a format that does not exist.
 */
#ifndef BIT_LINEAR_H
#define BIT_LINEAR_H

#include <stdint.h>

#if defined(_WIN32)
#define BIT_API __declspec(dllexport)
#elif defined(__GNUC__)
#define BIT_API __attribute__((visibility("default")))
#else
#define BIT_API
#endif

BIT_API int bit_linear_int8_portable(int format, const uint8_t *weight, int64_t row_bytes, const int8_t *x, int32_t *y,
                                     int64_t rows, int64_t outputs, int64_t inputs);
BIT_API int bit_linear_uint8_portable(int format, const uint8_t *weight, int64_t row_bytes, const uint8_t *x,
                                      int32_t *y, int64_t rows, int64_t outputs, int64_t inputs);

#endif

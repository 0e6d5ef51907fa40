/* Moments of frames in one pass, rounded alike on every processor with IEEE arithmetic: there are
 * LANES partial sums whatever the width of vectors, and no multiply-add is fused. */
#include "native.h"

#include <math.h>

enum { LANES = 16 };

static inline double least(double a, double b) { return b < a ? b : a; }
static inline double most(double a, double b) { return b > a ? b : a; }

void add_moments(const float *x, int64_t size, double near, struct moments *sum)
{
    double first[LANES] = {0}, second[LANES] = {0};
    float low[LANES], high[LANES];
    for (int lane = 0; lane < LANES; lane++)
        low[lane] = INFINITY, high[lane] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            const float value = x[i + lane];
            const double deviation = value - near;
            first[lane] += deviation;
            second[lane] += deviation * deviation;
            low[lane] = value < low[lane] ? value : low[lane];
            high[lane] = value > high[lane] ? value : high[lane];
        }
    for (; i < size; i++) {
        const double deviation = x[i] - near;
        first[0] += deviation;
        second[0] += deviation * deviation;
        low[0] = x[i] < low[0] ? x[i] : low[0];
        high[0] = x[i] > high[0] ? x[i] : high[0];
    }
    for (int lane = 0; lane < LANES; lane++) {
        sum->first += first[lane];
        sum->second += second[lane];
        sum->low = least(sum->low, low[lane]);
        sum->high = most(sum->high, high[lane]);
    }
}

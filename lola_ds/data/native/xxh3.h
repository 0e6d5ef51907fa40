/* XXH3-64 with seed 0, over data that comes in pieces. */
#ifndef LOLA_DS_XXH3_H
#define LOLA_DS_XXH3_H

#include <stddef.h>
#include <stdint.h>

#include "native.h"

enum { XXH3_BUFFER = 256 };

/* The hash of `total` bytes so far. The last of them, `buffered` ones, wait in `buffer`, as the end
 * of the data is hashed in another way; the stripe of 64 bytes before them stays at its end. */
struct xxh3 {
    uint64_t sums[8], total;
    uint32_t stripe, buffered; /* the next stripe's number within its block */
    uint8_t buffer[XXH3_BUFFER];
};

/* The state before any data: the spec's primes. */
#define XXH3_EMPTY                                                                                 \
    ((struct xxh3){                                                                                \
        .sums = {0xC2B2AE3D, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,           \
                 0x85EBCA77C2B2AE63, 0x85EBCA77, 0x27D4EB2F165667C5, 0x9E3779B1}})

typedef void xxh3_updater(struct xxh3 *state, const void *data, size_t size);
typedef uint64_t xxh3_digester(const struct xxh3 *state);

#define xxh3_update AT_LEVEL(xxh3_update)
#define xxh3_digest AT_LEVEL(xxh3_digest)
xxh3_updater xxh3_update;
xxh3_digester xxh3_digest;

#endif

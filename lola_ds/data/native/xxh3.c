/* XXH3-64 with seed 0: short inputs, and long ones in stripes of 64 bytes.
 *
 * The algorithm is Yann Collet's: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
 */
#include "xxh3.h"

#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are read as they are stored");

enum { STRIPE = 64, BLOCK = 16, STEP = 8, SECRET_SIZE = 192, AHEAD = 512 };

/* The spec's constants. */
static const uint64_t PRIME32_1 = 0x9E3779B1, PRIME64_1 = 0x9E3779B185EBCA87,
                      PRIME64_2 = 0xC2B2AE3D27D4EB4F, PRIME64_3 = 0x165667B19E3779F9,
                      PRIME_MX1 = 0x165667919E3779F9, PRIME_MX2 = 0x9FB21C651E98DF25;
static const uint64_t SECRET_WORDS[SECRET_SIZE / 8] __attribute__((aligned(64))) = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
    0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
    0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
    0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
};
#define SECRET ((const uint8_t *)SECRET_WORDS)

/* Vectors of 64-bit lanes: the products of their low halves, and every pair of lanes swapped. */
#if defined __AVX512F__
enum { WIDTH = 64 };
#define MULTIPLY(a, b) ((vector)_mm512_mul_epu32((__m512i)(a), (__m512i)(b)))
#define SWAP(a) ((vector)_mm512_shuffle_epi32((__m512i)(a), (_MM_PERM_ENUM)0x4E))
#elif defined __AVX2__
enum { WIDTH = 32 };
#define MULTIPLY(a, b) ((vector)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#define SWAP(a) ((vector)_mm256_shuffle_epi32((__m256i)(a), 0x4E))
#elif defined __SSE2__
enum { WIDTH = 16 };
#define MULTIPLY(a, b) ((vector)_mm_mul_epu32((__m128i)(a), (__m128i)(b)))
#define SWAP(a) ((vector)_mm_shuffle_epi32((__m128i)(a), 0x4E))
#else
enum { WIDTH = 16 };
#define MULTIPLY(a, b) (((a) & 0xFFFFFFFF) * ((b) & 0xFFFFFFFF))
#define SWAP(a) ((vector){(a)[1], (a)[0]})
#endif
enum { VECTORS = STRIPE / WIDTH };
typedef uint64_t vector __attribute__((vector_size(WIDTH)));
typedef vector unaligned_vector __attribute__((aligned(1), may_alias));

static inline vector load(const uint8_t *at) { return *(const unaligned_vector *)at; }
static inline uint64_t read_bytes(const uint8_t *at, size_t size)
{
    uint64_t value = 0;
    memcpy(&value, at, size);
    return value;
}

static inline uint64_t read32(const uint8_t *at) { return read_bytes(at, 4); }
static inline uint64_t read64(const uint8_t *at) { return read_bytes(at, 8); }
static inline uint64_t rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

/* The two halves of the product, combined. */
static inline uint64_t fold(uint64_t a, uint64_t b)
{
    const unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t avalanche(uint64_t x)
{
    x = (x ^ x >> 37) * PRIME_MX1;
    return x ^ x >> 32;
}

static inline uint64_t mix(const uint8_t *data, const uint8_t *secret)
{
    return fold(read64(data) ^ read64(secret), read64(data + 8) ^ read64(secret + 8));
}

static uint64_t hash_16(const uint8_t *data, size_t size)
{
    if (size > 8) {
        const uint64_t low = read64(data) ^ read64(SECRET + 24) ^ read64(SECRET + 32);
        const uint64_t high = read64(data + size - 8) ^ read64(SECRET + 40) ^ read64(SECRET + 48);
        return avalanche(size + __builtin_bswap64(low) + high + fold(low, high));
    }
    if (size > 3) {
        uint64_t x = read32(data + size - 4) + (read32(data) << 32);
        x ^= read64(SECRET + 8) ^ read64(SECRET + 16);
        x = (x ^ rotate(x, 49) ^ rotate(x, 24)) * PRIME_MX2;
        x = (x ^ ((x >> 35) + size)) * PRIME_MX2;
        return x ^ x >> 28;
    }
    uint64_t x = read64(SECRET + 56) ^ read64(SECRET + 64);
    if (size)
        x = ((uint64_t)data[size / 2] << 24 | data[0] << 16 | size << 8 | data[size - 1]) ^
            read32(SECRET) ^ read32(SECRET + 4);
    x = (x ^ x >> 33) * PRIME64_2;
    x = (x ^ x >> 29) * PRIME64_3;
    return x ^ x >> 32;
}

static uint64_t hash_240(const uint8_t *data, size_t size)
{
    uint64_t x = size * PRIME64_1;
    if (size <= 128) {
        for (size_t i = 0; 32 * i < size; i++)
            x += mix(data + 16 * i, SECRET + 32 * i) +
                 mix(data + size - 16 * (i + 1), SECRET + 32 * i + 16);
        return avalanche(x);
    }
    for (size_t i = 0; i < 8; i++)
        x += mix(data + 16 * i, SECRET + 16 * i);
    x = avalanche(x);
    for (size_t i = 8; i < size / 16; i++)
        x += mix(data + 16 * i, SECRET + 16 * (i - 8) + 3);
    return avalanche(x + mix(data + size - 16, SECRET + 136 - 17));
}

static inline void add_stripe(vector *sums, const uint8_t *data, const uint8_t *secret)
{
    for (int i = 0; i < VECTORS; i++) {
        const vector value = load(data + i * WIDTH), key = value ^ load(secret + i * WIDTH);
        sums[i] += SWAP(value) + MULTIPLY(key, key >> 32);
    }
}

static inline void scramble(vector *sums)
{
    const vector prime = (vector){0} + PRIME32_1;
    for (int i = 0; i < VECTORS; i++) {
        const vector x = sums[i] ^ sums[i] >> 47 ^ load(SECRET + SECRET_SIZE - STRIPE + i * WIDTH);
        sums[i] = MULTIPLY(x, prime) + (MULTIPLY(x >> 32, prime) << 32);
    }
}

/* Hashes stripes that are followed by more data. */
static void add_stripes(struct xxh3 *state, const uint8_t *data, size_t stripes)
{
    vector sums[VECTORS];
    memcpy(sums, state->sums, sizeof sums);
    while (stripes) {
        const size_t left = BLOCK - state->stripe, some = left < stripes ? left : stripes;
        const uint8_t *secret = SECRET + STEP * state->stripe;
        for (size_t i = 0; i < some; i++, data += STRIPE) {
            __builtin_prefetch(data + AHEAD);
            add_stripe(sums, data, secret + STEP * i);
        }
        stripes -= some;
        state->stripe = (state->stripe + (uint32_t)some) % BLOCK;
        if (!state->stripe)
            scramble(sums);
    }
    memcpy(state->sums, sums, sizeof sums);
}

void xxh3_update(struct xxh3 *state, const void *input, size_t size)
{
    const uint8_t *data = input;
    const size_t room = XXH3_BUFFER - state->buffered;
    state->total += size;
    if (size > room) {
        memcpy(state->buffer + state->buffered, data, room);
        data += room, size -= room;
        add_stripes(state, state->buffer, XXH3_BUFFER / STRIPE);
        state->buffered = 0;
        if (size > XXH3_BUFFER) {
            const size_t stripes = (size - 1) / STRIPE;
            add_stripes(state, data, stripes);
            data += stripes * STRIPE, size -= stripes * STRIPE;
            memcpy(state->buffer + XXH3_BUFFER - STRIPE, data - STRIPE, STRIPE);
        }
    }
    memcpy(state->buffer + state->buffered, data, size);
    state->buffered += (uint32_t)size;
}

uint64_t xxh3_digest(const struct xxh3 *state)
{
    const size_t size = (size_t)state->total, buffered = state->buffered;
    const size_t earlier = buffered < STRIPE ? STRIPE - buffered : 0;
    if (size <= 240)
        return size <= 16 ? hash_16(state->buffer, size) : hash_240(state->buffer, size);
    struct xxh3 end = *state;
    add_stripes(&end, end.buffer, (buffered - 1) / STRIPE);
    uint8_t last[STRIPE];
    memcpy(last, end.buffer + XXH3_BUFFER - earlier, earlier);
    memcpy(last + earlier, end.buffer + buffered + earlier - STRIPE, STRIPE - earlier);
    vector sums[VECTORS];
    memcpy(sums, end.sums, sizeof sums);
    add_stripe(sums, last, SECRET + SECRET_SIZE - STRIPE - 7);
    memcpy(end.sums, sums, sizeof sums);
    uint64_t x = size * PRIME64_1;
    for (int i = 0; i < 8; i += 2)
        x += fold(end.sums[i] ^ read64(SECRET + 11 + 8 * i),
                  end.sums[i + 1] ^ read64(SECRET + 19 + 8 * i));
    return avalanche(x);
}

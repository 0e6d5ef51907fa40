/* Reads frames straight into their places: what the loader does of each batch.
 *
 * A frame is read in pieces that fit a core's cache. A piece is hashed, and copied wherever else
 * the frame is wanted, right after it was read, so that memory is passed over once.
 *
 * This file is compiled once for every kind of processor, READ_FRAMES being the function's name;
 * module.c chooses among them when it is loaded.
 */
#define _GNU_SOURCE
#define XXH_INLINE_ALL
#include "xxhash.h"

#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PIECE = 1 << 18 };

/* Has the system fetch all frames from `first` on, side by side, before they are waited for. */
static void announce(const struct frames *frames, int64_t first)
{
#ifdef POSIX_FADV_WILLNEED
    for (int64_t i = first; i < frames->count; i++)
        posix_fadvise(frames->descriptors[i], frames->offsets[i], frames->size,
                      POSIX_FADV_WILLNEED);
#else
    (void)frames, (void)first;
#endif
}

/* Reads what is in memory already, without waiting for a disk; at least nothing. */
static size_t read_present(int descriptor, char *to, size_t size, off_t offset)
{
#ifdef RWF_NOWAIT
    struct iovec target = {to, size};
    ssize_t count = preadv2(descriptor, &target, 1, offset, RWF_NOWAIT);
    return count > 0 ? (size_t)count : 0;
#else
    (void)descriptor, (void)to, (void)size, (void)offset;
    return 0;
#endif
}

/* Reads `size` bytes, of which `done` are there; returns how many there are, fewer only at the
 * end of the file or where `*error` says why. */
static size_t read_rest(int descriptor, char *to, size_t size, off_t offset, size_t done,
                        int *error)
{
    while (done < size) {
        ssize_t count = pread(descriptor, to + done, size - done, offset + (off_t)done);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            *error = errno;
        if (count <= 0)
            break;
        done += (size_t)count;
    }
    return done;
}

struct outcome READ_FRAMES(const struct frames *frames)
{
    const size_t size = (size_t)frames->size;
    int announced = 0;
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    for (int64_t i = 0; i < frames->count; i++) {
        const int64_t *row = frames->rows + frames->bounds[i];
        const int64_t *end = frames->rows + frames->bounds[i + 1];
        const int descriptor = frames->descriptors[i], unsure = frames->unsure[i];
        char *target = frames->out + (size_t)*row * size;
        if (unsure)
            XXH3_64bits_reset(&state);
        for (size_t start = 0; start < size; start += PIECE) {
            const size_t want = size - start < PIECE ? size - start : PIECE;
            const off_t offset = (off_t)frames->offsets[i] + (off_t)start;
            char *piece = target + start;
            size_t done = announced ? 0 : read_present(descriptor, piece, want, offset);
            if (done < want) {
                int error = 0;
                if (!announced)
                    announce(frames, i);
                announced = 1;
                done = read_rest(descriptor, piece, want, offset, done, &error);
                if (done < want)
                    return (struct outcome){error ? FAILED : ENDED, i, (int64_t)(start + done),
                                            error};
            }
            if (unsure)
                XXH3_64bits_update(&state, piece, want);
            for (const int64_t *other = row + 1; other < end; other++)
                memcpy(frames->out + (size_t)*other * size + start, piece, want);
        }
        if (unsure && XXH3_64bits_digest(&state) != frames->digests[i])
            return (struct outcome){DIFFERS, i, frames->size, 0};
    }
    return (struct outcome){SOUND, frames->count, 0, 0};
}

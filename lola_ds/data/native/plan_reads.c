/* Which frames a call reads, from where, and which rows each becomes. */
#include "native.h"

#include <stdlib.h>

struct request {
    int64_t frame, row;
};

static int compare(const void *a, const void *b)
{
    const struct request *x = a, *y = b;
    if (x->frame != y->frame)
        return x->frame < y->frame ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

/* The last segment that begins at `frame` or before; the first begins at 0. */
static int64_t find_segment(const struct split *split, int64_t frame)
{
    int64_t low = 0, high = split->segments;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (split->first[middle] <= frame)
            low = middle;
        else
            high = middle;
    }
    return low;
}

int64_t plan_reads(const struct split *split, const int64_t *frames, const int64_t *rows,
                   int64_t wanted, const struct reads *reads)
{
    int64_t count = 0;
    struct request *all = malloc((size_t)wanted * sizeof *all);
    if (!all)
        return -1;
    for (int64_t i = 0; i < wanted; i++)
        all[i] = (struct request){frames[i], rows[i]};
    qsort(all, (size_t)wanted, sizeof *all, compare);
    for (int64_t i = 0; i < wanted; i++) {
        reads->rows[i] = all[i].row;
        if (i && all[i].frame == all[i - 1].frame)
            continue;
        const int64_t segment = find_segment(split, all[i].frame);
        const int64_t *entry = split->table + segment * COLUMNS;
        reads->frames[count] = all[i].frame;
        reads->shards[count] = entry[SHARD];
        reads->offsets[count] =
            entry[OFFSET] + (all[i].frame - split->first[segment]) * split->size;
        reads->bounds[count++] = i;
    }
    reads->bounds[count] = wanted;
    free(all);
    return count;
}

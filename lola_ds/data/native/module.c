/* The Python module `_lola_ds`: reads, hashes and sums up without the interpreter's lock. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "native.h"
#include "xxh3.h"

/* Increased whenever arguments or results change; `lola_ds.data.native` compares it. */
enum { INTERFACE = 4 };

/* The functions of a level of vector instructions. */
struct level {
    frame_reader *read_frames;
    xxh3_updater *update;
    xxh3_digester *digest;
};

#define DEFINE(suffix)                                                                             \
    frame_reader read_frames_##suffix;                                                             \
    xxh3_updater xxh3_update_##suffix;                                                             \
    xxh3_digester xxh3_digest_##suffix;                                                            \
    static const struct level suffix = {read_frames_##suffix, xxh3_update_##suffix,                \
                                        xxh3_digest_##suffix};

DEFINE(baseline)
#ifdef __x86_64__
DEFINE(avx2)
DEFINE(avx512)
#endif

static const struct level *best = &baseline;

static const struct level *choose_level(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f"))
        return &avx512;
    if (__builtin_cpu_supports("avx2"))
        return &avx2;
#endif
    return &baseline;
}

static int complain_unless(int fits, const char *name)
{
    if (!fits)
        PyErr_Format(PyExc_ValueError, "%s: tables do not fit each other", name);
    return fits;
}

static void release(Py_buffer *buffers, int count)
{
    for (int i = 0; i < count; i++)
        PyBuffer_Release(&buffers[i]);
}

static PyObject *plan_reads_of(PyObject *module, PyObject *args)
{
    enum { FRAMES, ROWS, FIRST, SEGMENTS, TABLE, BUFFERS };
    Py_buffer buffers[BUFFERS];
    Py_ssize_t size;
    int64_t count = -1;
    (void)module;
    if (!PyArg_ParseTuple(args, "ny*y*y*y*w*:arrange", &size, &buffers[FRAMES], &buffers[ROWS],
                          &buffers[FIRST], &buffers[SEGMENTS], &buffers[TABLE]))
        return NULL;
    const Py_ssize_t wanted = buffers[FRAMES].len / 8, column = wanted + 1;
    const struct split split = {buffers[FIRST].len / 8, size, buffers[FIRST].buf,
                                buffers[SEGMENTS].buf};
    int64_t *table = buffers[TABLE].buf;
    if (complain_unless(size > 0 && wanted > 0 && split.segments > 0 &&
                            buffers[ROWS].len == buffers[FRAMES].len &&
                            buffers[SEGMENTS].len == COLUMNS * buffers[FIRST].len &&
                            buffers[TABLE].len == 5 * 8 * column,
                        "arrange")) {
        const struct reads reads = {table, table + column, table + 2 * column, table + 3 * column,
                                    table + 4 * column};
        count = plan_reads(&split, buffers[FRAMES].buf, buffers[ROWS].buf, wanted, &reads);
        if (count < 0)
            PyErr_NoMemory();
    }
    release(buffers, BUFFERS);
    return count < 0 ? NULL : PyLong_FromLongLong(count);
}

enum { FILES, SHARDS, OFFSETS, DIGESTS, UNVERIFIED, BOUNDS, ROWS, OUT, BUFFERS };

/* Whether the buffers fit each other, every shard has a file, every row lies in `out`, and no end
 * of a frame overflows. */
static int check(const Py_buffer *buffers, Py_ssize_t size)
{
    const Py_ssize_t count = buffers[UNVERIFIED].len, rows = buffers[ROWS].len / 8;
    const Py_ssize_t files = buffers[FILES].len / (Py_ssize_t)sizeof(struct file);
    const int64_t *bounds = buffers[BOUNDS].buf, *row = buffers[ROWS].buf;
    const int64_t *shard = buffers[SHARDS].buf, *offset = buffers[OFFSETS].buf;
    int fits = size > 0 && buffers[BOUNDS].len == 8 * (count + 1) && bounds[0] == 0 &&
               bounds[count] == rows;
    for (int i = SHARDS; fits && i <= DIGESTS; i++)
        fits = buffers[i].len == 8 * count;
    for (Py_ssize_t i = 0; fits && i < count; i++)
        fits = bounds[i] < bounds[i + 1] && shard[i] >= 0 && shard[i] < files && offset[i] >= 0 &&
               offset[i] <= INT64_MAX - size;
    for (Py_ssize_t i = 0; fits && i < rows; i++)
        fits = row[i] >= 0 && row[i] < buffers[OUT].len / size;
    return complain_unless(fits, "read_frames");
}

static PyObject *read_frames(PyObject *module, PyObject *args)
{
    Py_buffer buffers[BUFFERS];
    Py_ssize_t size;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "ny*y*y*y*y*y*y*w*:read_frames", &size, &buffers[FILES],
                          &buffers[SHARDS], &buffers[OFFSETS], &buffers[DIGESTS],
                          &buffers[UNVERIFIED], &buffers[BOUNDS], &buffers[ROWS], &buffers[OUT]))
        return NULL;
    if (check(buffers, size)) {
        const struct frames frames = {
            .count = buffers[UNVERIFIED].len,
            .size = size,
            .files = buffers[FILES].buf,
            .shards = buffers[SHARDS].buf,
            .offsets = buffers[OFFSETS].buf,
            .digests = buffers[DIGESTS].buf,
            .unverified = buffers[UNVERIFIED].buf,
            .bounds = buffers[BOUNDS].buf,
            .rows = buffers[ROWS].buf,
            .out = buffers[OUT].buf,
        };
        struct outcome outcome;
        Py_BEGIN_ALLOW_THREADS
        catch_faults();
        outcome = best->read_frames(&frames);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("iLLi", (int)outcome.problem, (long long)outcome.frame,
                               (long long)outcome.bytes, outcome.error);
    }
    release(buffers, BUFFERS);
    return result;
}

static PyObject *map_file_of(PyObject *module, PyObject *args)
{
    int descriptor;
    long long size;
    (void)module;
    if (!PyArg_ParseTuple(args, "iL:map_file", &descriptor, &size))
        return NULL;
    return PyLong_FromLongLong(map_file(descriptor, size));
}

static PyObject *unmap_file_at(PyObject *module, PyObject *args)
{
    long long address, size;
    (void)module;
    if (!PyArg_ParseTuple(args, "LL:unmap_file", &address, &size))
        return NULL;
    unmap_file(address, size);
    return Py_NewRef(Py_None);
}

static PyObject *release_file_at(PyObject *module, PyObject *args)
{
    long long address, size;
    (void)module;
    if (!PyArg_ParseTuple(args, "LL:release_file", &address, &size))
        return NULL;
    release_file(address, size);
    return Py_NewRef(Py_None);
}

static PyObject *sum_moments(PyObject *module, PyObject *args)
{
    Py_buffer x, near, sums;
    Py_ssize_t size;
    (void)module;
    if (!PyArg_ParseTuple(args, "ny*y*w*:sum_moments", &size, &x, &near, &sums))
        return NULL;
    const Py_ssize_t channels = near.len / 8;
    const int countable = channels > 0 && size > 0 && size <= PY_SSIZE_T_MAX / 4 / channels;
    const Py_ssize_t frame = countable ? channels * size * 4 : 1;
    const int fits = countable && x.len % frame == 0 &&
                     sums.len == channels * (Py_ssize_t)sizeof(struct moments);
    if (complain_unless(fits, "sum_moments")) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t row = 0; row < x.len / frame * channels; row++)
            add_moments((const float *)x.buf + row * size, size,
                        ((const double *)near.buf)[row % channels],
                        (struct moments *)sums.buf + row % channels);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&x);
    PyBuffer_Release(&near);
    PyBuffer_Release(&sums);
    return fits ? Py_NewRef(Py_None) : NULL;
}

/* Whether a buffer holds a `struct xxh3` that can be used. */
static int check_hash(const Py_buffer *state, const char *name)
{
    const struct xxh3 *hash = state->buf;
    return complain_unless(state->len == sizeof *hash && hash->buffered <= XXH3_BUFFER, name);
}

static PyObject *start_hash(PyObject *module, PyObject *args)
{
    const struct xxh3 state = XXH3_EMPTY;
    (void)module, (void)args;
    return PyByteArray_FromStringAndSize((const char *)&state, sizeof state);
}

static PyObject *update_hash(PyObject *module, PyObject *args)
{
    Py_buffer state, data;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*y*:update_hash", &state, &data))
        return NULL;
    const int fits = check_hash(&state, "update_hash");
    if (fits && data.len) {
        Py_BEGIN_ALLOW_THREADS
        best->update(state.buf, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&state);
    PyBuffer_Release(&data);
    return fits ? Py_NewRef(Py_None) : NULL;
}

static PyObject *digest_hash(PyObject *module, PyObject *args)
{
    Py_buffer state;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*:digest_hash", &state))
        return NULL;
    const int fits = check_hash(&state, "digest_hash");
    PyObject *digest = fits ? PyLong_FromUnsignedLongLong(best->digest(state.buf)) : NULL;
    PyBuffer_Release(&state);
    return digest;
}

static PyMethodDef METHODS[] = {
    {"arrange", plan_reads_of, METH_VARARGS, NULL},
    {"read_frames", read_frames, METH_VARARGS, NULL},
    {"map_file", map_file_of, METH_VARARGS, NULL},
    {"unmap_file", unmap_file_at, METH_VARARGS, NULL},
    {"release_file", release_file_at, METH_VARARGS, NULL},
    {"start_hash", start_hash, METH_NOARGS, NULL},
    {"update_hash", update_hash, METH_VARARGS, NULL},
    {"digest_hash", digest_hash, METH_VARARGS, NULL},
    {"sum_moments", sum_moments, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, .m_name = "_lola_ds", .m_size = 0, .m_methods = METHODS,
};

PyMODINIT_FUNC PyInit__lola_ds(void)
{
    best = choose_level();
    PyObject *module = PyModule_Create(&MODULE);
    if (module && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

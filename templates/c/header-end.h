
/* A pool of threads, in lib{{ name }}.a and lib{{ name }}.so (not in {{ name }}.o); needs pthread.
   Start it in {{ name }}_pool_bytes() bytes aligned to {{ upper }}_ALIGNMENT; it fills in `parallel`,
   with fewer workers where the system gives no more. The caller is one of them; the others sleep
   when there is nothing to do, and keep off the caller's processor where its affinity mask allows
   another. One call at a time may use a pool. Stop it before its memory goes; stopping it twice, or
   NULL, does nothing. */
int64_t {{ name }}_pool_bytes(void);
int {{ name }}_pool_start(void *pool, int workers, {{ name }}_parallel *parallel);
void {{ name }}_pool_stop(void *pool);

#ifdef __cplusplus
}
#endif
#endif

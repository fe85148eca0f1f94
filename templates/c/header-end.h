
/* A pool of threads, in lib{{ name }}.a and lib{{ name }}.so (not in {{ name }}.o); needs pthread. Start it in
   {{ name }}_pool_bytes() bytes aligned to {{ upper }}_ALIGNMENT; it fills in `parallel`. One call
   at a time may use it. */
int64_t {{ name }}_pool_bytes(void);
int {{ name }}_pool_start(void *pool, int workers, {{ name }}_parallel *parallel);
void {{ name }}_pool_stop(void *pool);

#ifdef __cplusplus
}
#endif
#endif

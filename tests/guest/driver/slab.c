// SPDX-License-Identifier: GPL-2.0
/* The paths of slab: kmalloc, caches, bulk and RCU frees, and core functions that allocate for others. */
#include <linux/bottom_half.h>
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#include "leakdrv.h"

/* Large enough for no size class of anything else in this driver. */
#define SIZE 200

struct counted {
	struct rcu_head rcu;
	char data[SIZE - sizeof(struct rcu_head)];
};

static struct kmem_cache *cache, *rcu_cache;

static __always_inline void *kmalloc_get(void) { return kmalloc(SIZE, GFP_KERNEL); }
static __always_inline void kmalloc_put(void *object) { kfree(object); }
PATH(kmalloc)

static __always_inline void *kmalloc_on_node_get(void) { return kmalloc_node(SIZE, GFP_KERNEL, numa_mem_id()); }
static __always_inline void kmalloc_on_node_put(void *object) { kfree(object); }
PATH(kmalloc_on_node)

/* Its call site is that of its caller: a function like kstrdup. */
static noinline void *track_caller_get(void) { return kmalloc_track_caller(SIZE, GFP_KERNEL); }
static __always_inline void track_caller_put(void *object) { kfree(object); }
PATH(track_caller)

static __always_inline void *large_get(void) { return kmalloc(5 * PAGE_SIZE, GFP_KERNEL); }
static __always_inline void large_put(void *object) { kfree(object); }
PATH(large)

static __always_inline void *krealloc_in_place_get(void)
{
	void *object = kmalloc(SIZE - 60, GFP_KERNEL);

	return object ? krealloc(object, SIZE - 20, GFP_KERNEL) : NULL;
}
static __always_inline void krealloc_in_place_put(void *object) { kfree(object); }
PATH(krealloc_in_place)

static __always_inline void *krealloc_moved_get(void)
{
	void *object = kmalloc(60, GFP_KERNEL);

	return object ? krealloc(object, 900, GFP_KERNEL) : NULL;
}
static __always_inline void krealloc_moved_put(void *object) { kfree(object); }
PATH(krealloc_moved)

static __always_inline void *kvmalloc_small_get(void) { return kvmalloc(SIZE, GFP_KERNEL); }
static __always_inline void kvmalloc_small_put(void *object) { kvfree(object); }
PATH(kvmalloc_small)

/* Above the largest kmalloc on every kernel, so this is vmalloc's. */
static __always_inline void *kvmalloc_large_get(void) { return kvmalloc(5 << 20, GFP_KERNEL); }
static __always_inline void kvmalloc_large_put(void *object) { kvfree(object); }
PATH(kvmalloc_large)

static __always_inline void *sensitive_get(void) { return kmalloc(SIZE, GFP_KERNEL); }
static __always_inline void sensitive_put(void *object) { kfree_sensitive(object); }
PATH(sensitive)

static __always_inline void *memdup_get(void)
{
	static const char text[SIZE] = "copied";

	return kmemdup(text, SIZE, GFP_KERNEL);
}
static __always_inline void memdup_put(void *object) { kfree(object); }
PATH(memdup)

static __always_inline void *cache_get(void) { return kmem_cache_alloc(cache, GFP_KERNEL); }
static __always_inline void cache_put(void *object) { kmem_cache_free(cache, object); }
PATH(cache)

static __always_inline void *cache_on_node_get(void) { return kmem_cache_alloc_node(cache, GFP_KERNEL, numa_mem_id()); }
static __always_inline void cache_on_node_put(void *object) { kmem_cache_free(cache, object); }
PATH(cache_on_node)

#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 18, 0)
static __always_inline void *cache_lru_get(void) { return kmem_cache_alloc_lru(cache, NULL, GFP_KERNEL); }
static __always_inline void cache_lru_put(void *object) { kmem_cache_free(cache, object); }
PATH(cache_lru)
#endif

static __always_inline void *freed_by_kfree_get(void) { return kmem_cache_alloc(cache, GFP_KERNEL); }
static __always_inline void freed_by_kfree_put(void *object) { kfree(object); }
PATH(freed_by_kfree)

static __always_inline void *typesafe_get(void) { return kmem_cache_alloc(rcu_cache, GFP_KERNEL); }
static __always_inline void typesafe_put(void *object) { kmem_cache_free(rcu_cache, object); }
PATH(typesafe)

static __always_inline void *rcu_two_get(void) { return kmalloc(sizeof(struct counted), GFP_KERNEL); }
static __always_inline void rcu_two_put(void *object)
{
	struct counted *counted = object;

	kfree_rcu(counted, rcu);
}
PATH(rcu_two)

static __always_inline void *rcu_one_get(void) { return kmalloc(SIZE, GFP_KERNEL); }
static __always_inline void rcu_one_put(void *object) { kfree_rcu_mightsleep(object); }
PATH(rcu_one)

static __always_inline void *rcu_cached_get(void) { return kmem_cache_alloc(cache, GFP_KERNEL); }
static __always_inline void rcu_cached_put(void *object)
{
	struct counted *counted = object;

	kfree_rcu(counted, rcu);
}
PATH(rcu_cached)

static __always_inline void *vrcu_two_get(void) { return vmalloc(3 * PAGE_SIZE); }
static __always_inline void vrcu_two_put(void *object)
{
	struct counted *counted = object;

	kvfree_rcu(counted, rcu);
}
PATH(vrcu_two)

static __always_inline void *vrcu_one_get(void) { return vmalloc(3 * PAGE_SIZE); }
static __always_inline void vrcu_one_put(void *object) { kvfree_rcu_mightsleep(object); }
PATH(vrcu_one)

static __always_inline void *packet_get(void) { return alloc_skb(SIZE, GFP_KERNEL); }
static __always_inline void packet_put(void *object) { kfree_skb(object); }
PATH(packet)

/* What NAPI drivers do with a packet they have sent: the head goes to a cache of its CPU. */
static __always_inline void *napi_get(void) { return alloc_skb(SIZE, GFP_KERNEL); }
static __always_inline void napi_put(void *object)
{
	local_bh_disable();
	napi_consume_skb(object, 1);
	local_bh_enable();
}
PATH(napi)

/* `n` objects that are allocated or freed in one call. */
static __always_inline int in_bulk(unsigned int n, bool get_in_bulk, bool free)
{
	void **held = kvmalloc_array(n, sizeof(*held), GFP_KERNEL);
	unsigned int i = 0;
	int error = 0;

	if (!held)
		return -ENOMEM;
	if (get_in_bulk) {
		if (!kmem_cache_alloc_bulk(cache, GFP_KERNEL, n, held))
			error = -ENOMEM;
	} else {
		for (i = 0; i < n && !error; i++) {
			held[i] = kmem_cache_alloc(cache, GFP_KERNEL);
			if (!held[i])
				error = -ENOMEM;
		}
	}
	if (free && !error) {
		if (get_in_bulk) {
			for (i = 0; i < n; i++)
				kmem_cache_free(cache, held[i]);
		} else {
			kmem_cache_free_bulk(cache, n, held);
		}
	}
	kvfree(held);
	return error;
}

static noinline int alloc_bulk_leak(unsigned int n)
{
	int error = in_bulk(n, true, false);

	/* No tail call: this function has to be on the stack. */
	barrier();
	return error;
}

static noinline int alloc_bulk_balanced(unsigned int n)
{
	int error = in_bulk(n, true, true);

	barrier();
	return error;
}

static noinline int free_bulk_leak(unsigned int n)
{
	int error = in_bulk(n, false, false);

	barrier();
	return error;
}

static noinline int free_bulk_balanced(unsigned int n)
{
	int error = in_bulk(n, false, true);

	barrier();
	return error;
}

static noinline int kfree_bulk_leak(unsigned int n)
{
	while (n--) {
		void *object = kmalloc(SIZE, GFP_KERNEL);

		if (!object)
			return -ENOMEM;
		OPTIMIZER_HIDE_VAR(object);
	}
	return 0;
}

static noinline int kfree_bulk_balanced(unsigned int n)
{
	void **held = kvmalloc_array(n, sizeof(*held), GFP_KERNEL);
	unsigned int i;

	if (!held)
		return -ENOMEM;
	for (i = 0; i < n; i++) {
		/* Objects of different caches in one call, as kfree_rcu's batches have. */
		held[i] = kmalloc(i % 2 ? 700 : 1500, GFP_KERNEL);
		if (!held[i])
			return -ENOMEM;
	}
	kfree_bulk(n, held);
	kvfree(held);
	return 0;
}

/* A cache of its own that is destroyed; with objects left, it cannot be and is left behind, too. */
static __always_inline int in_own_cache(unsigned int n, bool free)
{
	struct kmem_cache *own = kmem_cache_create("leakdrv_own", 328, 0, 0, NULL);
	unsigned int i, some;
	void *held[HELD];

	if (!own)
		return -ENOMEM;
	for (; n; n -= some) {
		some = n < HELD ? n : HELD;
		for (i = 0; i < some; i++) {
			held[i] = kmem_cache_alloc(own, GFP_KERNEL);
			if (!held[i])
				return -ENOMEM;
		}
		for (i = 0; free && i < some; i++)
			kmem_cache_free(own, held[i]);
	}
	if (free)
		kmem_cache_destroy(own);
	return 0;
}

static noinline int destroyed_leak(unsigned int n)
{
	int error = in_own_cache(n, false);

	barrier();
	return error;
}

static noinline int destroyed_balanced(unsigned int n)
{
	int error = in_own_cache(n, true);

	barrier();
	return error;
}

const struct leak_path slab_paths[] = {
	ENTRY(kmalloc), ENTRY(kmalloc_on_node), ENTRY(track_caller), ENTRY(large), ENTRY(krealloc_in_place),
	ENTRY(krealloc_moved), ENTRY(kvmalloc_small), ENTRY(kvmalloc_large), ENTRY(sensitive), ENTRY(memdup),
	ENTRY(cache), ENTRY(cache_on_node),
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 18, 0)
	ENTRY(cache_lru),
#endif
	ENTRY(freed_by_kfree), ENTRY(typesafe), ENTRY(rcu_two), ENTRY(rcu_one), ENTRY(rcu_cached),
	ENTRY(vrcu_two), ENTRY(vrcu_one), ENTRY(packet), ENTRY(napi), ENTRY(alloc_bulk), ENTRY(free_bulk),
	ENTRY(kfree_bulk), ENTRY(destroyed), {}
};

int slab_init(void)
{
	cache = kmem_cache_create("leakdrv_cache", sizeof(struct counted) + 72, 0, 0, NULL);
	rcu_cache = kmem_cache_create("leakdrv_typesafe", 424, 0, SLAB_TYPESAFE_BY_RCU, NULL);
	return cache && rcu_cache ? 0 : -ENOMEM;
}

/* A cache with leaked objects cannot be destroyed: like them, it is left behind. */
void slab_exit(bool leaked)
{
	if (leaked)
		return;
	kmem_cache_destroy(cache);
	kmem_cache_destroy(rcu_cache);
}

// SPDX-License-Identifier: GPL-2.0
/* Memory that is not of slab: pages, vmalloc, per-CPU. */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/percpu.h>
#include <linux/vmalloc.h>

#include "leakdrv.h"

static struct page *mapped[4];

static __always_inline void *page_get(void) { return alloc_page(GFP_KERNEL); }
static __always_inline void page_put(void *object) { __free_page(object); }
PATH(page)

static __always_inline void *free_pages_get(void) { return (void *)__get_free_pages(GFP_KERNEL, 2); }
static __always_inline void free_pages_put(void *object) { free_pages((unsigned long)object, 2); }
PATH(free_pages)

static __always_inline void *compound_get(void) { return alloc_pages(GFP_KERNEL | __GFP_COMP, 3); }
static __always_inline void compound_put(void *object) { __free_pages(object, 3); }
PATH(compound)

/* Three of four pages: the last one goes back at once. */
static __always_inline void *exact_get(void) { return alloc_pages_exact(3 * PAGE_SIZE, GFP_KERNEL); }
static __always_inline void exact_put(void *object) { free_pages_exact(object, 3 * PAGE_SIZE); }
PATH(exact)

/* Four pages that are freed one by one, the first one not first. */
static __always_inline void *split_get(void)
{
	struct page *page = alloc_pages(GFP_KERNEL, 2);

	if (page)
		split_page(page, 2);
	return page;
}
static __always_inline void split_put(void *object)
{
	struct page *page = object;

	__free_page(page + 2);
	__free_page(page);
	__free_page(page + 3);
	__free_page(page + 1);
}
PATH(split)

static noinline int batch_leak(unsigned int n)
{
	while (n--) {
		struct page *page = alloc_page(GFP_KERNEL);

		if (!page)
			return -ENOMEM;
		OPTIMIZER_HIDE_VAR(page);
	}
	return 0;
}

static noinline int batch_balanced(unsigned int n)
{
	struct page *held[HELD];
	unsigned int i, some;

	for (; n; n -= some) {
		some = n < HELD ? n : HELD;
		for (i = 0; i < some; i++) {
			held[i] = alloc_page(GFP_KERNEL);
			if (!held[i])
				return -ENOMEM;
		}
		release_pages(held, some);
	}
	return 0;
}

static __always_inline void *vmalloc_get(void) { return vmalloc(3 * PAGE_SIZE); }
static __always_inline void vmalloc_put(void *object) { vfree(object); }
PATH(vmalloc)

static __always_inline void *vzalloc_get(void) { return vzalloc(2 * PAGE_SIZE); }
static __always_inline void vzalloc_put(void *object) { vfree(object); }
PATH(vzalloc)

static __always_inline void *vmap_get(void) { return vmap(mapped, ARRAY_SIZE(mapped), VM_MAP, PAGE_KERNEL); }
static __always_inline void vmap_put(void *object) { vunmap(object); }
PATH(vmap)

static __always_inline void *percpu_get(void) { return (void __force *)__alloc_percpu(96, 8); }
static __always_inline void percpu_put(void *object) { free_percpu((void __percpu __force *)object); }
PATH(percpu)

const struct leak_path page_paths[] = {
	ENTRY(page), ENTRY(free_pages), ENTRY(compound), ENTRY(exact), ENTRY(split), ENTRY(batch),
	ENTRY(vmalloc), ENTRY(vzalloc), ENTRY(vmap), ENTRY(percpu), {}
};

int page_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(mapped); i++) {
		mapped[i] = alloc_page(GFP_KERNEL);
		if (!mapped[i])
			return -ENOMEM;
	}
	return 0;
}

void page_exit(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(mapped); i++)
		if (mapped[i])
			__free_page(mapped[i]);
}

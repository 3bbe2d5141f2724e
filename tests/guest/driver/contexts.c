// SPDX-License-Identifier: GPL-2.0
/* The contexts in which drivers allocate: softirq, workqueue, kthread, interrupts off. */
#include <linux/completion.h>
#include <linux/err.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/slab.h>
#include <linux/timer.h>
#include <linux/version.h>
#include <linux/workqueue.h>

#include "leakdrv.h"

/* What a context is asked to do. */
static struct {
	unsigned int n;
	bool free;
	int error;
	struct completion done;
} order;

static void allocate(void *object, bool free)
{
	if (!object)
		order.error = -ENOMEM;
	else if (free)
		kfree(object);
}

/* Each context has its own function with its own call site, and its own size: GCC would make one of two alike. */
#define WORK(name, gfp, size)						\
static noinline void name##_work(void)					\
{									\
	unsigned int i;							\
									\
	for (i = 0; i < order.n; i++)					\
		allocate(kmalloc(size, gfp), order.free);		\
}

static int wait_for(unsigned int n, bool free, void (*start)(void))
{
	order.n = n;
	order.free = free;
	order.error = 0;
	reinit_completion(&order.done);
	start();
	wait_for_completion(&order.done);
	return order.error;
}

#define CONTEXT(name)							\
static int name##_leak(unsigned int n) { return wait_for(n, false, name##_start); }	\
static int name##_balanced(unsigned int n) { return wait_for(n, true, name##_start); }

WORK(softirq, GFP_ATOMIC, 340)

static void on_timer(struct timer_list *timer)
{
	softirq_work();
	complete(&order.done);
}

static DEFINE_TIMER(timer, on_timer);

static void softirq_start(void) { mod_timer(&timer, jiffies + 1); }
CONTEXT(softirq)

WORK(workqueue, GFP_KERNEL, 348)

static void on_work(struct work_struct *work)
{
	workqueue_work();
	complete(&order.done);
}

static DECLARE_WORK(work, on_work);

static void workqueue_start(void) { schedule_work(&work); }
CONTEXT(workqueue)

WORK(kthread, GFP_KERNEL, 356)

static int on_thread(void *unused)
{
	kthread_work();
	complete(&order.done);
	return 0;
}

static void kthread_start(void)
{
	struct task_struct *task = kthread_run(on_thread, NULL, "leakdrv");

	if (IS_ERR(task)) {
		order.error = PTR_ERR(task);
		complete(&order.done);
	}
}
CONTEXT(kthread)

WORK(irq_off, GFP_ATOMIC, 364)

static void irq_off_start(void)
{
	unsigned long flags;

	local_irq_save(flags);
	irq_off_work();
	local_irq_restore(flags);
	complete(&order.done);
}
CONTEXT(irq_off)

const struct leak_path context_paths[] = {
	ENTRY(softirq), ENTRY(workqueue), ENTRY(kthread), ENTRY(irq_off), {}
};

int context_init(void)
{
	init_completion(&order.done);
	return 0;
}

void context_exit(void)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	timer_delete_sync(&timer);
#else
	del_timer_sync(&timer);
#endif
	cancel_work_sync(&work);
}

// SPDX-License-Identifier: GPL-2.0
/*
 * What drivers hold for a process: `echo N > handles` on an open file allocates N objects, which are
 * freed when the file is closed. Half of them are on a list, half in an array that only points to them.
 */
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "leakdrv.h"

#define MOST 8192

struct handle {
	struct list_head list;
	char data[500];
};

struct handle_user {
	struct list_head handles;
	unsigned int held;
	void *buffers[MOST];
};

static int handles_open(struct inode *inode, struct file *file)
{
	struct handle_user *user = kvzalloc(sizeof(*user), GFP_KERNEL);

	if (!user)
		return -ENOMEM;
	INIT_LIST_HEAD(&user->handles);
	file->private_data = user;
	return 0;
}

static noinline int handle_create(struct handle_user *user)
{
	struct handle *handle = kmalloc(sizeof(*handle), GFP_KERNEL);

	if (!handle)
		return -ENOMEM;
	list_add_tail(&handle->list, &user->handles);
	return 0;
}

static noinline int buffer_create(struct handle_user *user)
{
	void *buffer;

	if (user->held == MOST)
		return -ENOSPC;
	buffer = kmalloc(1000, GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	user->buffers[user->held++] = buffer;
	return 0;
}

static ssize_t handles_write(struct file *file, const char __user *data, size_t size, loff_t *at)
{
	struct handle_user *user = file->private_data;
	unsigned int n;
	int error = kstrtouint_from_user(data, size, 10, &n);

	while (!error && n--) {
		error = handle_create(user);
		if (!error)
			error = buffer_create(user);
	}
	return error ? error : size;
}

static int handles_release(struct inode *inode, struct file *file)
{
	struct handle_user *user = file->private_data;
	struct handle *handle, *next;

	list_for_each_entry_safe(handle, next, &user->handles, list)
		kfree(handle);
	while (user->held)
		kfree(user->buffers[--user->held]);
	kvfree(user);
	return 0;
}

static const struct file_operations handles_fops = {
	.owner = THIS_MODULE,
	.open = handles_open,
	.write = handles_write,
	.release = handles_release,
};

void handles_init(struct dentry *directory)
{
	debugfs_create_file("handles", 0200, directory, NULL, &handles_fops);
}

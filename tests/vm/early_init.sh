#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 host /host
mount -t ext4 -o noatime /dev/vda /disk
mkdir -p /disk/upper /disk/work /disk/lib /disk/tmp /disk/vartmp; chmod 1777 /disk/tmp /disk/vartmp
mount -t overlay -o lowerdir=/host,upperdir=/disk/upper,workdir=/disk/work overlay /root
. /job/settings; mkdir -p /root/host /root/lib/modules; mount --bind "/host$MODULES" /root/lib/modules
mount --bind /root /before; mount --bind /disk/lib /root/var/lib
mount --bind /disk/tmp /root/tmp; mount --bind /disk/vartmp /root/var/tmp
case $DIRECTORY in /tmp/*|/var/tmp/*|/var/lib/*) hidden=$DIRECTORY ;; *) hidden=/var/lib/dpkg ;; esac
for kept in /var/lib/dpkg "$hidden"; do mkdir -p "/root$kept"; mount --bind "/before$kept" "/root$kept"; done
mount -t tmpfs -o mode=755 tmpfs /root/run
for mounted in proc sys dev host; do mount --move /$mounted /root/$mounted; done
cp -r /job /root/run/vm; cp /bin/busybox /root/run/vm/busybox
exec switch_root -c /dev/console /root /run/vm/busybox sh /run/vm/init

/* Start-up for a chip without interrupts in use: registers, .data, .bss, main. Followed by what a compiler may call. */

    .section .init, "ax"
    .globl  _start
_start:
    .option push
    .option norelax
    la      gp, __global_pointer$
    .option pop
    la      sp, __stack_top
    la      a0, __data_load
    la      a1, __data_start
    la      a2, __data_end
    j       2f
1:  lw      a3, 0(a0)
    sw      a3, 0(a1)
    addi    a0, a0, 4
    addi    a1, a1, 4
2:  bltu    a1, a2, 1b
    la      a1, __bss_start
    la      a2, __bss_end
    j       4f
3:  sw      zero, 0(a1)
    addi    a1, a1, 4
4:  bltu    a1, a2, 3b
    call    main
5:  ebreak
    j       5b

/* void network_wait(void): stops for the debugger or emulator, which reads the last result, writes the next input and
   goes on at network_resume. */
    .section .text.network_wait, "ax"
    .globl  network_wait
    .globl  network_resume
network_wait:
    ebreak
network_resume:
    ret

/* GCC may call these even in freestanding code; each is linked only when used. */
    .section .text.memset, "ax"
    .globl  memset
memset:
    add     a2, a2, a0
    mv      a3, a0
    j       2f
1:  sb      a1, 0(a3)
    addi    a3, a3, 1
2:  bltu    a3, a2, 1b
    ret

    .section .text.memcpy, "ax"
    .globl  memcpy
memcpy:
    add     a2, a2, a0
    mv      a3, a0
    j       2f
1:  lbu     a4, 0(a1)
    sb      a4, 0(a3)
    addi    a1, a1, 1
    addi    a3, a3, 1
2:  bltu    a3, a2, 1b
    ret

    .section .text.memmove, "ax"
    .globl  memmove
memmove:
    bgtu    a0, a1, 3f
    tail    memcpy
3:  add     a3, a0, a2
    add     a1, a1, a2
    j       5f
4:  addi    a3, a3, -1
    addi    a1, a1, -1
    lbu     a4, 0(a1)
    sb      a4, 0(a3)
5:  bltu    a0, a3, 4b
    ret

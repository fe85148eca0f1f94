; The x86-64 level of this processor, 1 to 4: what it has and what the system saves.
; The two instructions are written as bytes, so that no assembler is needed; weak, so that LLVM
; does not take the bodies behind the bytes for what the functions do:
;   push rbx; mov eax, edi; mov ecx, esi; mov r8, rdx; cpuid; mov [r8], eax; mov [r8+4], ebx;
;   mov [r8+8], ecx; mov [r8+12], edx; pop rbx; ret
;   xor ecx, ecx; xgetbv; ret
define weak hidden void @{{ name }}_cpuid(i32 %leaf, i32 %sub, ptr %found) noinline optnone prologue [27 x i8] c"\53\89\F8\89\F1\49\89\D0\0F\A2\41\89\00\41\89\58\04\41\89\48\08\41\89\50\0C\5B\C3" {
  store volatile i32 0, ptr %found
  ret void
}

define weak hidden i32 @{{ name }}_xgetbv() noinline optnone prologue [6 x i8] c"\31\C9\0F\01\D0\C3" {
  %none = alloca i32
  %value = load volatile i32, ptr %none
  ret i32 %value
}

define internal i64 @cpu() {
entry:
  %found = alloca [4 x i32]
  %found.b = getelementptr i32, ptr %found, i64 1
  %found.c = getelementptr i32, ptr %found, i64 2
  call void @{{ name }}_cpuid(i32 0, i32 0, ptr %found)
  %most = load i32, ptr %found
  call void @{{ name }}_cpuid(i32 1, i32 0, ptr %found)
  %features = load i32, ptr %found.c
  ; SSE3 SSSE3 CX16 SSE4.1 SSE4.2 POPCNT
  %two.bits = and i32 %features, 9970177
  %two = icmp eq i32 %two.bits, 9970177
  br i1 %two, label %second, label %none
none:
  ret i64 1
second:
  ; FMA MOVBE OSXSAVE AVX F16C
  %three.bits = and i32 %features, 943722496
  %three = icmp eq i32 %three.bits, 943722496
  %deep = icmp uge i32 %most, 7
  %further = and i1 %three, %deep
  br i1 %further, label %third, label %two.only
two.only:
  ret i64 2
third:
  %state = call i32 @{{ name }}_xgetbv()
  %ymm = and i32 %state, 6
  %ymm.saved = icmp eq i32 %ymm, 6
  call void @{{ name }}_cpuid(i32 7, i32 0, ptr %found)
  %wide = load i32, ptr %found.b
  ; BMI1 AVX2 BMI2
  %avx2.bits = and i32 %wide, 296
  %avx2 = icmp eq i32 %avx2.bits, 296
  call void @{{ name }}_cpuid(i32 -2147483647, i32 0, ptr %found)
  %extended = load i32, ptr %found.c
  %lzcnt.bit = and i32 %extended, 32
  %lzcnt = icmp ne i32 %lzcnt.bit, 0
  %a = and i1 %ymm.saved, %avx2
  %b = and i1 %a, %lzcnt
  br i1 %b, label %fourth, label %two.only
fourth:
  %zmm = and i32 %state, 230
  %zmm.saved = icmp eq i32 %zmm, 230
  ; AVX512 F DQ CD BW VL
  %avx512.bits = and i32 %wide, -805109760
  %avx512 = icmp eq i32 %avx512.bits, -805109760
  %c = and i1 %zmm.saved, %avx512
  %level = select i1 %c, i64 4, i64 3
  ret i64 %level
}

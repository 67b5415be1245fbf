"""Find the fastest inference engine whose predictions match fp32."""

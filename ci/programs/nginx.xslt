<?xml version="1.0"?>
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
<xsl:output method="html"/>
<xsl:template match="/list"><html><body><table>
<xsl:for-each select="item"><xsl:sort select="name"/><xsl:sort select="@number" data-type="number"/>
<tr><td><xsl:value-of select="concat(@number, ': ', translate(name, 'name', 'NAME'))"/></td>
<td><xsl:value-of select="substring(text, 1, 20)"/></td><td><xsl:value-of select="count(preceding-sibling::item) * 3"/></td></tr>
</xsl:for-each></table><p><xsl:value-of select="sum(item/@number)"/></p></body></html></xsl:template>
</xsl:stylesheet>
